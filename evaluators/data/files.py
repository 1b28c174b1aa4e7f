"""Files that a job names: on this machine, or anywhere that fsspec reaches (https, s3, gs, abfs,
...)."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import IO

import fsspec

from apportion.compressors.errors import ApportionError, DataError
from apportion.compressors.folders import cache_folder
from apportion.db.files import write_atomically

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")


def is_url(text: str) -> bool:
    return _URL.match(text) is not None


def local_file(name: str | Path) -> Path:
    """The file itself, or a URL's copy in the cache, fetched when it is not there or has changed.
    Raises DataError."""
    if not is_url(str(name)):
        return Path(name)
    url = str(name)
    try:
        system, path = fsspec.url_to_fs(url)
        version = system.ukey(path)
        copy = (
            cache_folder()
            / "files"
            / f"{hashlib.sha256(f'{url} {version}'.encode()).hexdigest()[:16]}-{Path(path).name}"
        )
        if not copy.is_file():
            with system.open(path, "rb") as source:
                write_atomically(copy, lambda target: _pour(source, target))
    except ApportionError:
        raise
    except Exception as error:  # each of fsspec's file systems raises its own
        reason = str(error).strip().splitlines() or [repr(error)]
        raise DataError(url, f"cannot be fetched: {reason[0]}") from error
    return copy


def _pour(source: IO[bytes], target: Path) -> None:
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
