"""What this process may use of the machine that it runs on."""

from __future__ import annotations

import math
import os
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
    for group, second in _groups(root, "memory"):
        files = _V2 if second else _V1
        limit, use = _number(group / files.limit), _number(group / files.use)
        if limit is not None and use is not None:
            cache = _field(group / "memory.stat", files.cache, 1) or 0
            yield max(0, limit - max(0, use - cache))


def memory_kills(root: Path = Path("/")) -> int:
    """Processes that the kernel has killed for want of memory since the machine started; 0 where it
    does not say."""
    return _field(root / "proc/vmstat", "oom_kill", 1) or 0


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may keep busy: those that it may run on (`taskset`, batch systems), or
    the time that its control groups give it (containers), where that is less. `root` is where /proc
    and /sys lie."""
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, _shares(root))]))


def _shares(root: Path) -> Iterator[float]:
    """CPU seconds a second of each group that has a limit."""
    for group, second in _groups(root, "cpu"):
        if second:
            share, each = _pair(group / "cpu.max")
        else:
            share, each = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if share is not None and share > 0 and each:  # version 1 says -1 where there is no limit
            yield share / each


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """The groups that this process is in, and those around them; whether each is of version 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if not controllers:
            bases = ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            bases = [f"sys/fs/cgroup/{controller}", f"sys/fs/cgroup/{controllers}"]
        else:
            continue
        for base in (root / base for base in bases):
            group = base / place.lstrip("/")
            while group.is_relative_to(base):
                yield group, not controllers
                group = group.parent


def _pair(file: Path) -> tuple[int | None, int | None]:
    """`cpu.max`: the share, or `max`, and the time that it is of, in microseconds."""
    try:
        share, each = file.read_text().split()
        return int(share), int(each)
    except (OSError, ValueError):
        return None, None


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
