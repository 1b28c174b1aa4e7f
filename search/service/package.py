"""What a job needs on the cluster, in one folder: the job, the files it names as far as they are
small, the project's code, and the user's own modules."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from apportion.compressors.errors import ConfigurationError, JobError
from apportion.db.files import write_json
from apportion.db.runs.url import holds_secret, masked
from apportion.evaluators.data.files import is_url
from apportion.evaluators.models.build import NAMED
from apportion.search.jobs.job import AnyJob, Job
from apportion.search.jobs.job_file import load_job, map_paths, read_content, resolve_paths
from apportion.search.service.archive import FILES, Archive, regular_files, size_of

JOB = "job.json"
LIMIT = 64 << 20
"""Bytes up to which a file or folder is uploaded."""
_ALL = 500 << 20
"""Bytes in all; Ray takes 512 MiB."""
_UNUSED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so", ".gitignore", ".rayignore")
_PROJECT = "apportion"
_CODE = re.compile(r"[^\s:/]+:[^\W\d]\w*")


@dataclass(frozen=True, slots=True)
class Packed:
    """The job as it was checked here, and what the user should know about its files."""

    job: AnyJob
    notes: tuple[str, ...]


def pack(job_file: Path, target: Path, *, upload: bool, storage: str | None = None) -> Packed:
    """Check the job and fill the folder `target`. Without `upload` the job runs on this machine,
    and its files stay where they are. `storage`: where it will lie, if that is known. Raises
    JobError, ConfigurationError."""
    job = load_job(job_file)
    notes: list[str] = []
    content = read_content(job_file)
    _check_store(job, content, job_file, upload)
    archive = Archive(target)
    if upload:
        if isinstance(job, Job):
            try:
                check_database(str(content["database"]["path"]), storage)
            except ConfigurationError as error:
                raise JobError(job_file, "database.path", str(error)) from error
        files = _Files(job_file, archive, notes)
        content = map_paths(content, files.place)
        _copy_module(_PROJECT, target)
        modules = {name.partition(":")[0].partition(".")[0] for name in code_names(content)}
        for name in sorted(modules - {_PROJECT}):
            _copy_module(name, target, own=True)
    else:
        content = resolve_paths(content, job_file.absolute().parent) | {"store": job.store}
    write_json(target / JOB, content)
    archive.close()
    if upload and (size := size_of(regular_files(target), _ALL)) > _ALL:
        raise ConfigurationError(
            f"the job's files are more than {size >> 20} MiB together, and Ray takes "
            f"{_ALL >> 20} MiB; put some of them on the head node, and name them by their paths "
            "there"
        )
    return Packed(job, tuple(notes))


def code_names(content: dict[str, Any]) -> list[str]:
    """What a job's content names as module:function or module:Class, and so runs: to upload it, and
    to say early what will be refused. What is imported is decided in `load_object` alone."""
    found: list[str] = []

    def look(part: Any) -> None:
        for one in (
            part
            if isinstance(part, list)
            else [*part, *part.values()]
            if isinstance(part, dict)
            else ()
        ):
            look(one)
        if isinstance(part, str) and _CODE.fullmatch(part) and not part.startswith(NAMED):
            found.append(part)

    workload, latency, search = (
        content.get(key) or {} for key in ("workload", "latency", "search")
    )
    look(
        [
            workload.get("model"),
            workload.get("task"),
            data.get("function") if isinstance(data := workload.get("data"), dict) else None,
            latency.get("table"),
            search.get("algorithms"),
        ]
    )  # parameters too: race names algorithms
    return found


class _Files:
    """Where each path of a job goes."""

    def __init__(self, job_file: Path, archive: Archive, notes: list[str]) -> None:
        self._job_file, self._archive, self._notes = job_file, archive, notes
        self._number = 0

    def place(self, keys: tuple[str, ...], text: str) -> str:
        """The path that the job has on the cluster, relative to the package where it was
        uploaded."""
        if keys == ("database", "path"):  # in the storage's own folder of databases
            return text if text.startswith("/") else Path(text).name
        path = Path(text).expanduser()
        here = self._job_file.absolute().parent / path
        field = ".".join(keys)
        if not here.exists():
            if path.is_absolute():
                self._notes.append(
                    f"{field}: {path} is not on this machine; the head node must have it"
                )
                return str(path)
            raise JobError(
                self._job_file,
                field,
                f"no such file: {here} (one that is on the cluster is named by an absolute path)",
            )
        try:
            size = size_of(regular_files(here), LIMIT)
            if size > LIMIT:
                self._notes.append(
                    f"{field}: {here} is too large to upload (more than {LIMIT >> 20} MiB); the "
                    "head node must have it"
                )
                return str(here)
            self._number += 1
            name = f"{self._number}-{here.name}"
            self._archive.add(here, name)
        except ConfigurationError as error:
            raise JobError(self._job_file, field, str(error)) from error
        return f"{FILES}/{name}"


def check_database(path: str, storage: str | None) -> None:
    """Raises ConfigurationError for a database outside the storage of a cluster's jobs. A relative
    path counts by its name alone, in the storage's folder of databases; `storage` may begin with
    ~/, the home of the head's user, which is not known here."""
    named = PurePosixPath(path)
    if not named.is_absolute():
        wrong = named.name in ("", "..")
    else:
        below = storage is not None and not is_url(storage) and storage.startswith("/")
        plain = os.path.normpath(path)
        inside = os.path.normpath(storage or "/") + "/"
        wrong = (below and not plain.startswith(inside)) or (storage is not None and not below)
    if wrong:
        raise ConfigurationError(
            f"{path} lies outside the storage{f', {storage}' if storage else ''}; give it a name"
        )


def _check_store(job: AnyJob, content: dict[str, Any], job_file: Path, upload: bool) -> None:
    """`content` is what the file says; `job` has the default store where it says nothing."""
    if content.get("store") is None or job.store is None:
        return
    if holds_secret(job.store):
        raise JobError(
            job_file,
            "store",
            f"{masked(job.store)} holds a password, which would lie in the job's files; write "
            "{url: URL without it, password_env: NAME}, and set NAME where the job runs",
        )
    if upload and job.store.startswith("sqlite"):
        raise JobError(
            job_file,
            "store",
            f"{job.store} is a file on this machine; name a PostgreSQL server that the cluster "
            "reaches, or leave it out",
        )


def _copy_module(name: str, target: Path, *, own: bool = False) -> None:
    """Copy the Python files of a top-level module. A user's `own` that is installed as a package is
    expected on the nodes."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(f"module {name!r} cannot be found: {error}") from error
    if spec is None or spec.origin is None:
        raise ConfigurationError(f"module {name!r} cannot be found; is its folder in PYTHONPATH?")
    origin = Path(spec.origin).resolve()
    installed = [
        Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "purelib", "platlib")
    ]
    if own and any(origin.is_relative_to(folder) for folder in installed):
        return
    if origin.name != "__init__.py":
        shutil.copy2(origin, target / origin.name)
        return
    if not own:  # its folders are links, to those beside it
        shutil.copytree(origin.parent, target / name, ignore=_UNUSED, dirs_exist_ok=True)
        return
    if size_of(regular_files(origin.parent), LIMIT) > LIMIT:
        raise ConfigurationError(
            f"module {name!r}: {origin.parent} is too large to upload (more than "
            f"{LIMIT >> 20} MiB); keep data elsewhere, or install it on the nodes"
        )
    shutil.copytree(origin.parent, target / name, ignore=_UNUSED, dirs_exist_ok=True)
