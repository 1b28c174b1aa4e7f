"""What this process may use of the machine that it runs on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class _Files:
    """How a version of control groups calls what is read here: a group's limit and use in bytes,
    and the part of its use that is cache, which is given up when memory is wanted."""

    limit: str
    use: str
    cache: str


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: what the system says is available, or what its
    control groups (containers, batch systems) leave, where that is less. None where nothing says
    so. `root` is where /proc and /sys lie."""
    found = [_available(root), *_left_by_groups(root)]
    return min((free for free in found if free is not None), default=None)


def _available(root: Path) -> int | None:
    """MemAvailable: what is free, and what caches would give up."""
    return _field(root / "proc/meminfo", "MemAvailable:", 1024)


def _left_by_groups(root: Path) -> Iterator[int]:
    """Of each group that this process is in, up to the outermost one that is to be seen: a limit
    holds for all below it."""
    for base, place, files in _groups(root):
        group = base / place.lstrip("/")
        while group.is_relative_to(base):
            limit, use = _number(group / files.limit), _number(group / files.use)
            if limit is not None and use is not None:
                cache = _field(group / "memory.stat", files.cache, 1) or 0
                yield max(0, limit - max(0, use - cache))
            group = group.parent


def _groups(root: Path) -> Iterator[tuple[Path, str, _Files]]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if not controllers:
            for base in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                yield root / base, place, _V2
        elif "memory" in controllers.split(","):
            yield root / "sys/fs/cgroup/memory", place, _V1


def _number(file: Path) -> int | None:
    """None where there is no such file, or no limit (`max`)."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _field(file: Path, name: str, unit: int) -> int | None:
    try:
        for line in file.read_text().splitlines():
            key, *values = line.split()
            if key == name:
                return int(values[0]) * unit
    except (OSError, ValueError, IndexError):
        pass
    return None
