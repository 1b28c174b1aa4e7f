"""Pools score requests on workers and hand the results back in the order they were asked.

`LocalPool` works in this process; `RayPool` on Ray actors, one scorer each. Both give the same results: the scorer is the same,
with the same number of threads.
"""

from __future__ import annotations

import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import torch

from compressors.errors import EvaluationError
from db.cluster import Session

Request = tuple[tuple[int, ...], float]
"""A candidate (level indices) and its fidelity (share of the calibration data)."""


class Scorer(Protocol):
    def score(self, candidate: tuple[int, ...], fidelity: float = 1.0) -> float: ...


@dataclass(frozen=True, slots=True)
class Score:
    """Fitness (lower is better) and the seconds that scoring took on its worker."""

    fitness: float
    seconds: float


class Pool(ABC):
    """`evaluate` yields one Score per request, in asked order, whatever order they finish in."""

    @abstractmethod
    def evaluate(self, requests: Sequence[Request]) -> Iterator[Score]:
        """Raises EvaluationError when a request fails twice. A lost worker is replaced and its request given out again."""

    @abstractmethod
    def close(self) -> None:
        """Stop the workers and free what the pool took."""

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class LocalPool(Pool):
    """Scores in this process. `make_scorer` is called at the first request; `threads` is how many torch may use."""

    def __init__(self, make_scorer: Callable[[], Scorer], threads: int) -> None:
        self._make, self._threads = make_scorer, threads
        self._scorer: Scorer | None = None

    def evaluate(self, requests: Sequence[Request]) -> Iterator[Score]:
        for candidate, fidelity in requests:
            before = torch.get_num_threads()
            torch.set_num_threads(self._threads)
            try:
                score = self._score(candidate, fidelity)
            finally:
                torch.set_num_threads(before)
            yield score

    def _score(self, candidate: tuple[int, ...], fidelity: float) -> Score:
        for attempt in (1, 2):
            try:
                if self._scorer is None:
                    self._scorer = self._make()
                return _timed(self._scorer, candidate, fidelity)
            except Exception as error:
                self._scorer = None  # its state is unknown now
                if attempt == 2:
                    raise EvaluationError(candidate, traceback.format_exc()) from error
        raise AssertionError("unreachable")

    def close(self) -> None:
        self._scorer = None


class RayPool(Pool):
    """Scores on `count` Ray actors with `cpus` and `gpus` each. Connects to a running cluster where RAY_ADDRESS names one,
    otherwise starts Ray on this machine and stops it in `close`. Raises ConfigurationError without Ray or the resources."""

    def __init__(self, make_scorer: Callable[[], Scorer], count: int, cpus: float, gpus: float = 0) -> None:
        self._session = Session(count, cpus, gpus)
        self._ray = self._session.ray
        try:
            self._make = self._ray.put(make_scorer)
            worker = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(_Worker)
            self._new_worker = lambda: worker.remote(self._make, max(1, int(cpus)))
            self._workers = [self._new_worker() for _ in range(count)]
        except BaseException:
            self.close()
            raise
        self.replaced = 0

    def evaluate(self, requests: Sequence[Request]) -> Iterator[Score]:
        waiting = deque(enumerate(requests))
        idle = list(range(len(self._workers)))
        flying: dict[Any, tuple[int, int, Request]] = {}
        failures: dict[int, int] = {}
        done: dict[int, Score] = {}
        told = 0
        try:
            while told < len(requests):
                while idle and waiting:
                    number, request = waiting.popleft()
                    slot = idle.pop()
                    flying[self._workers[slot].score.remote(*request)] = (slot, number, request)
                ready, _ = self._ray.wait(list(flying), num_returns=1)
                slot, number, request = flying.pop(ready[0])
                idle.append(slot)
                if (score := self._result(ready[0], slot, number, request, failures)) is None:
                    waiting.appendleft((number, request))
                else:
                    done[number] = score
                while told in done:
                    yield done.pop(told)
                    told += 1
        finally:
            for reference in flying:  # the caller stopped early, or a candidate failed for good
                self._ray.cancel(reference)

    def _result(self, reference: Any, slot: int, number: int, request: Request, failures: dict[int, int]) -> Score | None:
        """The score, or None when the request must be given out again."""
        errors = self._ray.exceptions
        try:
            fitness, seconds = self._ray.get(reference)
            return Score(fitness, seconds)
        except (errors.RayActorError, errors.WorkerCrashedError) as error:
            self._workers[slot] = self._new_worker()
            self.replaced += 1
            text = str(error)
        except errors.RayTaskError as error:
            text = str(error)
        failures[number] = failures.get(number, 0) + 1
        if failures[number] == 2:
            raise EvaluationError(request[0], text)
        return None

    def close(self) -> None:
        for worker in getattr(self, "_workers", []):
            self._ray.kill(worker)
        self._workers = []
        self._session.close()


class _Worker:
    """The actor: one scorer, made once."""

    def __init__(self, make_scorer: Callable[[], Scorer], threads: int) -> None:
        torch.set_num_threads(threads)
        self._scorer = make_scorer()

    def score(self, candidate: tuple[int, ...], fidelity: float) -> tuple[float, float]:
        score = _timed(self._scorer, candidate, fidelity)
        return score.fitness, score.seconds


def _timed(scorer: Scorer, candidate: tuple[int, ...], fidelity: float) -> Score:
    start = time.perf_counter()
    return Score(scorer.score(candidate, fidelity), time.perf_counter() - start)
