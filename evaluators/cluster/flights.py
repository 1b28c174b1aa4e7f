"""What RayPool keeps of its workers and of the requests that are out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from apportion.evaluators.cluster.memory import Place
from apportion.evaluators.scoring.pool import Request, Score


@dataclass(slots=True)
class Slot:
    """One worker's place. `starting` is pending until the actor has said where it is (`place`), and
    then until its scorer is made (None then); `there`: it has to answer in time; `since`: when it
    began what it is doing; `lost`, `killed`: workers that were lost here one after the other, while
    they started, or for want of memory; `width`: requests that it takes at once; `finished`: with
    all that it was given."""

    actor: Any
    starting: Any
    there: bool
    since: float = 0.0
    place: Place | None = None
    lost: int = 0
    killed: int = 0
    width: int = 1
    finished: bool = True


@dataclass(slots=True)
class Tries:
    """Of one request: how often it failed, its worker was lost, and was killed for want of
    memory."""

    failed: int = 0
    lost: int = 0
    killed: int = 0

    def add(self, more: Tries) -> None:
        self.failed += more.failed
        self.lost += more.lost
        self.killed += more.killed


@dataclass(slots=True)
class Flight:
    """Requests that a worker has been given: their numbers, the place, and the actor that was
    there."""

    slot: Slot
    actor: Any
    numbers: list[int]


@dataclass(slots=True)
class Work:
    """What one `evaluate` still has to do. `flying`: reference -> what was given out, the oldest
    first."""

    requests: Sequence[Request]
    waiting: deque[int]
    flying: dict[Any, Flight] = field(default_factory=dict)
    tries: dict[int, Tries] = field(default_factory=dict)
    done: dict[int, Score] = field(default_factory=dict)
