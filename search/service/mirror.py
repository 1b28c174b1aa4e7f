"""Storage at a URL (s3://, gs://, abfs://, ...): the head node works in a folder of its own, and
keeps the URL up to date."""

from __future__ import annotations

import hashlib
import json
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import fsspec

from apportion.compressors.errors import ConfigurationError, OutputError
from apportion.db.files import write_atomically, write_bytes
from apportion.db.runs.url import holds_secret, masked
from apportion.evaluators.data.files import cache_folder, is_url
from apportion.search.service.folder import ENDED, JobState

_FOLLOW_EVERY = 5.0


def check_storage(text: str) -> str:
    """A storage that means the same wherever it is read. Raises ConfigurationError."""
    if is_url(text):
        if holds_secret(text):
            raise ConfigurationError(
                f"storage: {masked(text)} holds a password; credentials of a URL stand in the "
                "head's environment"
            )
    elif not text.startswith("/") and text != "~" and not text.startswith("~/"):
        raise ConfigurationError(
            f"storage: {text!r} is relative; name a folder of the head node by an absolute path or "
            "~/..., or a URL"
        )
    return text


class Mirror:
    """`folder` is where the storage's files are on this machine: the storage itself, or the copy of
    what lies at its URL. Names are relative to it. Raises OutputError where the URL cannot be
    reached."""

    def __init__(self, storage: str, kept: str = "storage") -> None:
        """`kept`: the folder of the user's cache that the copy is in."""
        self._url = storage.rstrip("/") if is_url(storage) else None
        self._followed = -_FOLLOW_EVERY
        if self._url is None:
            self.folder = Path(storage).expanduser().absolute()
        else:
            self.folder = (
                cache_folder() / kept / hashlib.sha256(self._url.encode()).hexdigest()[:16]
            )

    def pull(self, name: str, sign: str) -> None:
        """Copy the folder `name` here, unless its file `sign` is here already, or is not there."""
        if self._url is None or (self.folder / name / sign).exists():
            return
        try:
            system, path = fsspec.url_to_fs(f"{self._url}/{name}")
            if system.exists(f"{path}/{sign}"):
                fetch(system, path, self.folder / name, last=sign)
        except Exception as error:  # each of fsspec's file systems raises its own
            raise OutputError(f"{self._url}/{name}", f"cannot be read: {error}") from error

    def push(self, name: str) -> None:
        """Copy the file or folder `name` there; one that is not here is nothing to copy."""
        here = self.folder / name
        if self._url is None or not here.exists():
            return
        try:
            system, path = fsspec.url_to_fs(f"{self._url}/{name}")
            files = (
                [file for file in sorted(here.rglob("*")) if file.is_file()]
                if here.is_dir()
                else [here]
            )
            # The file that says that the rest is there comes last.
            for file in sorted(files, key=lambda file: file.name == "manifest.json"):
                there = f"{path}/{file.relative_to(here)}" if here.is_dir() else path
                system.makedirs(there.rpartition("/")[0], exist_ok=True)
                system.put_file(str(file), there)
        except Exception as error:
            raise OutputError(f"{self._url}/{name}", f"cannot be written: {error}") from error

    def follow(self) -> None:
        """Bring what the jobs say of themselves here, and the results of those that have ended;
        every five seconds at most."""
        if self._url is None or time.monotonic() - self._followed < _FOLLOW_EVERY:
            return
        self._followed = time.monotonic()
        try:
            system, root = fsspec.url_to_fs(self._url)
            system.invalidate_cache()
            for there in system.find(f"{root}/jobs", maxdepth=2):
                name = str(there)[len(str(root)) + 1 :]
                if not re.fullmatch(r"jobs/[^/]+/state\.json", name):
                    continue
                folder = (self.folder / name).parent
                content = system.cat_file(there)
                if (folder / "state.json").is_file() and (
                    folder / "state.json"
                ).read_bytes() == content:
                    continue
                if _has_ended(content) and system.exists(
                    f"{str(there).rpartition('/')[0]}/results"
                ):
                    fetch(system, f"{str(there).rpartition('/')[0]}/results", folder / "results")
                write_atomically(folder / "state.json", partial(write_bytes, content=content))
        except Exception as error:  # each of fsspec's file systems raises its own
            raise OutputError(self._url, f"cannot be read: {error}") from error


def _has_ended(content: bytes) -> bool:
    """Of a state that cannot be read, one does not know."""
    try:
        return JobState.from_json(json.loads(content)).state in ENDED
    except (ValueError, RecursionError):
        return False


def fetch(system: Any, path: str, target: Path, last: str = "") -> None:
    """Copy all files under `path` of an fsspec file system into the folder `target`; the one called
    `last`, which says that the others are there, after them."""
    for file in sorted(system.find(path), key=lambda file: str(file) == f"{path}/{last}"):
        relative = Path(str(file)[len(str(path)) :].lstrip("/"))
        copy = target / relative
        if not copy.resolve().is_relative_to(target.resolve()):
            raise OutputError(copy, "it would lie outside the folder")
        copy.parent.mkdir(parents=True, exist_ok=True)
        system.get_file(str(file), str(copy))
