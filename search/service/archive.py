"""A package's files on their way: the job's own in one archive, which nobody on the way changes
(Ray leaves out what a .gitignore among them names), and a manifest of all, to be checked there."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from apportion.compressors.errors import ConfigurationError
from apportion.db.files import write_json

FILES = "files"
"""The folder of the job's own files in a package, once it is unpacked."""
_ARCHIVE, _MANIFEST = "files.tar", "files.json"
_BLOCK = 1 << 20
_NAMED = 3


def regular_files(root: Path, inside: Path | None = None) -> Iterator[Path]:
    """All files below a folder, or the file itself, in order. Raises ConfigurationError for what
    is no regular file (a pipe, a socket), for a link that leads outside the folder `inside` (by
    default `root`), and for a link to a folder, which might hold itself."""
    if not root.is_dir():
        yield _regular(root, root)
        return
    real = (inside or root).resolve()
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted([*names, *(f for f in folders if Path(folder, f).is_symlink())]):
            path = Path(folder, name)
            target = Path(os.path.realpath(path)) if path.is_symlink() else path
            if path.is_symlink() and not (target.is_relative_to(real) and target.is_file()):
                raise ConfigurationError(
                    f"{path} is a link to {os.readlink(path)}; in a folder that is copied, links "
                    "lead to files of the same folder alone: put the files themselves there"
                )
            yield _regular(path, target)


def _regular(path: Path, target: Path) -> Path:
    if not stat.S_ISREG(target.stat().st_mode):
        raise ConfigurationError(
            f"{path} is no regular file; what is copied may hold no pipes, sockets or devices"
        )
    return path


def size_of(files: Iterable[Path], limit: int) -> int:
    """Bytes of the files together; counted no further than the first sum above `limit`."""
    total = 0
    for path in files:
        total += path.stat().st_size
        if total > limit:
            break
    return total


class Archive:
    """The job's own files, added one by one to the package at `target`."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._manifest: dict[str, list[int | str]] = {}

    def add(self, source: Path, name: str) -> None:
        """A file, or all files of a folder, as `name` in the package's folder FILES. Raises
        ConfigurationError as `regular_files`, and where a file changes meanwhile."""
        self._target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(self._target / _ARCHIVE, "a") as archive:
            for folder, _, _ in os.walk(source):  # those without files too: a class may have none
                info = tarfile.TarInfo(_below(f"{FILES}/{name}", source, Path(folder)))
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            for path in regular_files(source):
                info = tarfile.TarInfo(_below(f"{FILES}/{name}", source, path))
                try:
                    info.size = path.stat().st_size
                    with path.open("rb") as file:
                        archive.addfile(info, file)
                    self._manifest[info.name] = [info.size, _digest(path)]
                except (OSError, tarfile.TarError) as error:
                    raise ConfigurationError(f"{path} cannot be packed: {error}") from error

    def close(self) -> None:
        """Write the manifest, of what lies in the package beside the archive too."""
        for path in regular_files(self._target):
            name = path.relative_to(self._target).as_posix()
            if name not in (_ARCHIVE, _MANIFEST):
                self._manifest[name] = [path.stat().st_size, _digest(path)]
        write_json(self._target / _MANIFEST, self._manifest)


def unpack(package: Path) -> None:
    """The archive's files, in its place. Raises ConfigurationError."""
    archive = package / _ARCHIVE
    if not archive.is_file():
        return
    try:
        with tarfile.open(archive) as opened:
            opened.extractall(package, filter="data")  # nothing outside the package
    except (OSError, tarfile.TarError) as error:
        raise ConfigurationError(f"{archive} cannot be unpacked: {error}") from error
    archive.unlink()


def check(package: Path) -> None:
    """Raises ConfigurationError where an unpacked package is not what was packed: a file is not
    there, or another one, or one too many among the job's own."""
    if not (package / _MANIFEST).is_file():
        raise ConfigurationError(f"{package / _MANIFEST} did not arrive; submit the job again")
    manifest = json.loads((package / _MANIFEST).read_text())
    wrong = [name for name, known in manifest.items() if not _is_as(package / name, *known)]
    there = regular_files(package / FILES) if (package / FILES).is_dir() else ()
    more = [
        name for path in there if (name := path.relative_to(package).as_posix()) not in manifest
    ]
    for names, what in ((wrong, "did not arrive as they were sent"), (more, "were not sent")):
        if names:
            shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
            raise ConfigurationError(
                f"{len(names)} of the {len(manifest)} files of the job {what}: {shown}; submit it "
                "again"
            )


def _below(name: str, source: Path, path: Path) -> str:
    return name if path == source else f"{name}/{path.relative_to(source).as_posix()}"


def _is_as(path: Path, size: int, digest: str) -> bool:
    return path.is_file() and path.stat().st_size == size and _digest(path) == digest


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
