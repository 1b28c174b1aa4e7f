"""Whose a database's folder is: one plan's, and one process's while it builds."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apportion.compressors.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseMismatchError,
    DocumentError,
    OutputError,
)
from apportion.db.documents.json_reader import read_json
from apportion.db.files import remove_leftovers, write_json
from apportion.db.layers import format
from apportion.db.layers.outputs import check_outputs


@contextmanager
def claimed(path: Path, plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The folder at `path`, which belongs to `plan` from now on, for this process alone; gives the
    plan as the folder has it. What killed builds left half-written is removed. Raises
    DatabaseMismatchError where the folder holds another plan's database, DatabaseError where it
    holds other files, DatabaseBusyError while another process builds in it, OutputError. A finished
    database is nobody's: any number of processes may open it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error
    except ValueError as error:  # a path that no folder can have
        raise OutputError(path, str(error)) from error
    try:
        if (path / format.MANIFEST).is_file():
            yield _same(path, plan)
            return
        _lock(handle, path, plan)
        _clean(path)
        yield _begun(path, plan)
    finally:
        os.close(handle)  # and the lock goes with it, as it does with a process that is killed


def _lock(handle: int, path: Path, plan: Mapping[str, Any]) -> None:
    """On the folder, not on a file in it: two that begin at once must not both find it empty."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if (path / format.BUILD).is_file():
            _same(path, plan)
        raise DatabaseBusyError(path, "another process is building it") from None
    except OSError as error:
        raise OutputError(path, f"cannot be locked: {error.strerror or error}") from error


def _clean(path: Path) -> None:
    try:
        remove_leftovers(path, f"{format.BUILD}|{format.MANIFEST}")
        if (path / format.LAYERS).is_dir():
            remove_leftovers(path / format.LAYERS, r"\d{4,}-.*\.safetensors")
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error


def _begun(path: Path, plan: Mapping[str, Any]) -> Mapping[str, Any]:
    if (path / format.BUILD).is_file():
        return _same(path, plan)
    if any(path.iterdir()):
        raise DatabaseError(path, "the folder holds other files; choose an empty or a new folder")
    write_json(path / format.BUILD, plan)
    return plan


def _same(path: Path, plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the folder's build.json says; its model's outputs are those of the processor that began
    it. Raises DatabaseMismatchError where it is not `plan`."""
    try:
        found = read_json(path / format.BUILD)
    except DocumentError as error:
        raise DatabaseError(path, f"{format.BUILD} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("format") != plan["format"]:
        raise DatabaseError(path, f"{format.BUILD} is not that of a layer database")
    exact = [key for key in {**plan, **found} if key != "outputs"]
    if differing := ", ".join(key for key in exact if found.get(key) != plan.get(key)):
        raise DatabaseMismatchError(
            path,
            f"the folder holds a database with other {differing}; choose another folder, or remove "
            "this one",
        )
    check_outputs(path, found.get("outputs"), plan.get("outputs"))
    return found
