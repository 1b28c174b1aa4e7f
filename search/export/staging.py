"""The folder of an export: all of its files, or none."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apportion.compressors.errors import OutputError

SUMMARY = "profile.json"
_PREFIX = ".export-"


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder beside `out` whose files move into `out` when all of them are there."""
    created: Path | None = None
    try:
        existed = out.exists()
        out.mkdir(parents=True, exist_ok=True)
        if not existed:
            created = out
        staging, handle = _begun(out)
    except OSError as error:
        raise OutputError(out, error.strerror or str(error)) from error
    try:
        yield staging
        earlier = written(out)
        for path in list(staging.iterdir()):
            if path.is_dir():
                _remove(out / path.name)
            os.replace(path, out / path.name)
        for name in earlier - set(written(out)):
            _remove(out / name)  # it would not belong to this one
        created = None
    except OSError as error:
        raise OutputError(out, error.strerror or str(error)) from error
    finally:
        os.close(handle)
        shutil.rmtree(staging, ignore_errors=True)
        if created is not None:
            shutil.rmtree(created, ignore_errors=True)


def _remove(path: Path) -> None:
    """A file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _begun(out: Path) -> tuple[Path, int]:
    """A new folder in `out`, and what holds its lock: the folders of exports that were killed are
    those whose lock is free. They are removed."""
    whole = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(whole, fcntl.LOCK_EX)  # between making a folder and locking it
        for old in out.glob(f"{_PREFIX}*"):
            handle = os.open(old, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
            except BlockingIOError:
                pass  # another export is at work
            finally:
                os.close(handle)
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=out))
        handle = os.open(made, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        return made, handle
    finally:
        os.close(whole)


def summary(out: Path) -> dict[str, Any]:
    """The content of the summary in `out`; empty without one."""
    try:
        content = json.loads((out / SUMMARY).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def written(out: Path) -> set[str]:
    """Names of the files in `out` that an export says it wrote."""
    names = summary(out).get("written")
    return (
        {name for name in names if isinstance(name, str) and name == Path(name).name}
        if isinstance(names, list)
        else set()
    )
