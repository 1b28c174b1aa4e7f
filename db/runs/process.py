"""Which process it is, beyond its number: numbers come again, and every container has a 1."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """Number and start (clock ticks since boot) of a process; of the machine that it runs on the
    boot's random id and its name; of its container the namespace that numbers processes. `boot` and
    `namespace` are empty where a system does not tell (not Linux): nothing is concluded there."""

    number: int
    started: str
    boot: str
    namespace: str
    machine: str

    def __str__(self) -> str:
        return f"process {self.number} on {self.machine}"

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Process | None:
        """None for what is no process."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    @classmethod
    def this(cls) -> Process:
        number = os.getpid()
        try:
            boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
            namespace = str((_PROC / "self/ns/pid").readlink())
            started = _start(number) or ""
        except OSError:
            boot, namespace, started = "", "", ""
        return cls(number, started, boot, namespace, platform.node())

    def knows(self, other: Process) -> bool | None:
        """Whether `other` lives; None where this process cannot tell: it is on another machine, in
        another container, or not to be looked at."""
        if not (self.boot and self.namespace) or not other.started:
            return None
        if (self.boot, self.namespace) != (other.boot, other.namespace):
            return None
        try:
            return _start(other.number) == other.started
        except OSError:
            return None


def _start(number: int) -> str | None:
    """When the process of that number started; None where there is none, or one that has ended and
    was not waited for. Raises OSError where that is not to be seen."""
    try:
        text = (_PROC / str(number) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return None if state in "ZX" else fields[18]
