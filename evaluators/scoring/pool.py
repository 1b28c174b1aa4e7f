"""Pools score requests on workers and hand the results back in the order they were asked.

`LocalPool` works in this process; `ray_pool.RayPool` on Ray actors, one scorer each. Both give the
same results: the scorer is the same, with the same number of threads."""

from __future__ import annotations

import math
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from apportion.compressors.errors import DatabaseError, EvaluationError
from apportion.compressors.threads import torch_threads

Request = tuple[tuple[int, ...], float] | tuple[tuple[int, ...], float, float]
"""A candidate (level indices), its fidelity (share of the calibration data), and where there is one
the bound at which a fitness is of no more interest: such a candidate may score inf."""

DEADLINE = 900.0
"""Seconds after which a worker that still scores one candidate counts as hung, where nothing else
is asked."""
_WINDOW = 16
"""Requests that are sorted together."""


class Scorer(Protocol):
    def score(
        self, candidate: tuple[int, ...], fidelity: float = 1.0, bound: float = math.inf
    ) -> float:
        """Fitness, lower is better; inf is allowed for one that is above `bound`."""
        ...


@dataclass(frozen=True, slots=True)
class Score:
    """Fitness (lower is better) and the seconds that scoring took on its worker."""

    fitness: float
    seconds: float


class Pool(ABC):
    """`evaluate` yields one Score per request, in asked order, whatever order they finish in.
    `events` counts what befell the workers: lost, hung."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()

    @property
    def there(self) -> int:
        """Workers that have begun to take work."""
        return 1

    @abstractmethod
    def evaluate(self, requests: Sequence[Request]) -> Iterator[Score]:
        """Raises EvaluationError when a request fails twice, and DatabaseError when that is what
        fails. A lost worker is replaced and its
        request given out again."""

    @abstractmethod
    def close(self) -> None:
        """Stop the workers and free what the pool took."""

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def prefix_order(requests: Sequence[Request]) -> list[int]:
    """An order in which to score, such that neighbours share the levels of as many first layers as
    they can: sorted, a few at a time, so that what is scored can soon be told in asked order."""
    numbers = range(len(requests))
    windows = [numbers[i : i + _WINDOW] for i in range(0, len(requests), _WINDOW)]
    return [number for window in windows for number in sorted(window, key=lambda n: requests[n][0])]


class LazyPool(Pool):
    """The pool that `start` gives, from when there is first something to score."""

    def __init__(self, start: Callable[[], Pool]) -> None:
        super().__init__()
        self._start = start
        self._pool: Pool | None = None

    def evaluate(self, requests: Sequence[Request]) -> Iterator[Score]:
        if not requests:
            return iter(())
        if self._pool is None:
            self._pool = self._start()
            self._pool.events = self.events
        return self._pool.evaluate(requests)

    @property
    def there(self) -> int:
        return 0 if self._pool is None else self._pool.there

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


class LocalPool(Pool):
    """Scores in this process. `make_scorer` is called at the first request; `threads` is how many
    torch may use."""

    def __init__(self, make_scorer: Callable[[], Scorer], threads: int) -> None:
        super().__init__()
        self._make, self._threads = make_scorer, threads
        self._scorer: Scorer | None = None

    def evaluate(self, requests: Sequence[Request]) -> Iterator[Score]:
        done: dict[int, Score] = {}
        told = 0
        waiting = deque(prefix_order(requests))
        while waiting:
            with torch_threads(self._threads):
                if self._scorer is None:
                    self._scorer = self._make()
                numbers = [waiting.popleft() for _ in range(min(width(self._scorer), len(waiting)))]
                done.update(zip(numbers, self._score([requests[n] for n in numbers]), strict=True))
            while told in done:
                yield done.pop(told)
                told += 1

    def _score(self, requests: list[Request]) -> list[Score]:
        for attempt in (1, 2):
            try:
                if self._scorer is None:
                    self._scorer = self._make()
                return timed(self._scorer, requests)
            except Exception as error:
                self._scorer = None  # its state is unknown now
                if attempt == 2 and isinstance(error, DatabaseError):
                    raise  # no other candidate would fare better
                if attempt == 2 and len(requests) == 1:
                    raise EvaluationError(requests[0][0], traceback.format_exc()) from error
                if attempt == 2:
                    return [
                        score for request in requests for score in self._score([request])
                    ]  # which of them is it?
        raise AssertionError("unreachable")

    def close(self) -> None:
        self._scorer = None


def width(scorer: Scorer) -> int:
    """How many requests it is best given at once; more than 1 for scorers with a `width` and
    `score_many`."""
    return int(getattr(scorer, "width", 1))


def timed(scorer: Scorer, requests: Sequence[Request]) -> list[Score]:
    """Score some requests, and how long that took, in equal shares."""
    start = time.perf_counter()
    if width(scorer) > 1:
        found = scorer.score_many(requests)  # type: ignore[attr-defined]
    else:
        found = [scorer.score(*request) for request in requests]
    seconds = (time.perf_counter() - start) / len(requests)
    return [Score(fitness, seconds) for fitness in found]
