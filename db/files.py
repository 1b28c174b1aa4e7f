"""Writing files so that they are there in full or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from apportion.compressors.errors import OutputError

_FORGOTTEN = 3600.0
"""Seconds without a change after which a temporary file is that of a process which was killed."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk and rename it to
    `path`. Whatever goes wrong, the temporary file is removed and an older `path` stays as it was;
    that of a process which was killed goes an hour later, with the next write of the same file.
    Raises OutputError."""
    temporary: Path | None = None
    if "\0" in str(path):
        raise OutputError(path, "no file can have such a name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, re.escape(path.name), _FORGOTTEN)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(
            0o666 & ~umask
        )  # mkstemp's 0600 would hide shared files from the other nodes' users
        temporary.replace(path)
    except (OSError, SafetensorError) as error:  # a full disk is either, by who writes
        raise OutputError(path, getattr(error, "strerror", None) or str(error)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, names: str, age: float = 0.0) -> None:
    """Remove the temporary files that `write_atomically` left in `folder` for files whose names
    match the pattern `names`, where it was killed and they have not changed for `age` seconds."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if re.fullmatch(rf"\.({names})\.[a-z0-9_]{{8}}", entry.name) is None:
                continue
            with contextlib.suppress(FileNotFoundError):  # another process did it
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime >= age
                if old and entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, for `write_atomically`."""
    path.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, for `write_atomically`."""
    path.write_bytes(content)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file whose bytes follow from its content alone, for `write_atomically`.
    safetensors orders the tensors, but writes the metadata in an order that changes from call to
    call."""
    save_file(tensors, path, metadata=metadata)
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
        file.seek(8)
        file.write(text.ljust(size))  # the format pads with spaces, as safetensors does


def finite(content: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON does not have."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically. Raises OutputError."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: write_text(temporary, text))
