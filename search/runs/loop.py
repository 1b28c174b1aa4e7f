"""The loop of one run: ask -> look up -> evaluate -> store -> tell; resumed by replay.

The store's log of trials is the only checkpoint. A resumed run asks its algorithm again from the
start and answers from the log as long as that lasts; since algorithms draw from their own generator
alone, they ask the same again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from apportion.compressors.errors import StoreError
from apportion.compressors.progress import Progress, silent
from apportion.db.runs.store import Run, RunStore, StoredTrial
from apportion.evaluators.scoring.pool import Pool
from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.runs.checked import Checked
from apportion.search.space.space import Candidate, SearchSpace

_T = TypeVar("_T")
_ROUNDING = 1e-9
"""Fidelities are fractions: their sum may miss the evaluation budget by rounding alone."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run: its trials in asked order, the best one at full fidelity (the earliest where several
    are equal), and the one that is picked in the end (see search.selection; the best one where no
    selection was made). `score`: the pick's on the selection samples (lower is better), None where
    no selection was made."""

    run: Run
    trials: tuple[StoredTrial, ...]
    best: StoredTrial
    pick: StoredTrial
    score: float | None = None

    @property
    def evaluations(self) -> float:
        """Full-evaluation equivalents that the algorithm asked for; answers from the store count
        too."""
        return sum(trial.fidelity for trial in self.trials)


def search(
    algorithm: Algorithm,
    space: SearchSpace,
    pool: Pool,
    store: RunStore,
    run: Run,
    problem: str,
    progress: Progress = silent,
    expand: Callable[[Candidate], Candidate] = tuple,
    notes: Mapping[str, Any] = MappingProxyType({}),
) -> RunResult:
    """Drive `algorithm` until it has asked for `run.evaluations` full evaluations, or asks for
    nothing more. Interrupted at any point, the same call goes on and ends with the same result.

    Args:
        algorithm: asks, and is told.
        space: what it searches. All that it asks is checked against this, so that every scored
            candidate meets all budgets, whoever wrote the algorithm.
        pool: scores.
        store: keeps every trial before the next one is handed on.
        run: what it is called there.
        problem: what a fitness depends on besides the candidate; a candidate that any run scored on
            the same problem is never scored again.
        progress: hears of every trial.
        expand: makes what the algorithm decides into one level index per layer; that is what is
            scored, stored and returned.
        notes: kept with the algorithm's own; JSON.

    Returns:
        The run's trials and the best of them.

    Raises:
        AlgorithmError: the algorithm raised, or asked for what is not in its space or budgets.
        StoreError: the log is not this algorithm's, or it asked for nothing in full.
        EvaluationError: a candidate failed twice.
    """
    asker = Checked(algorithm, run.algorithm, space)
    log = store.trials(run.id)
    if store.run(run.id).state == "finished":
        return result_of(run, log)
    started = time.monotonic()
    store.set_state(run.id, "running", 0.0)
    told: list[StoredTrial] = []
    state = "failed"
    thinking = _Stopwatch()
    try:
        while asked := thinking.time(asker.ask):
            affordable = _affordable(asked, run.evaluations - sum(t.fidelity for t in told))
            batch: list[Trial] = []
            full = [replace(trial, candidate=expand(trial.candidate)) for trial in affordable]
            for trial, scored in zip(
                affordable, _answers(full, log, len(told), pool, store, run, problem), strict=True
            ):
                told.append(scored)
                batch.append(
                    replace(
                        trial, fitness=scored.fitness if scored.fitness <= trial.bound else math.inf
                    )
                )
                _report(progress, run, told)
            if len(affordable) < len(asked):
                break  # the budget ends within what was asked: nothing is left to tell it for
            thinking.time(partial(asker.tell, batch))
        state = "finished"
        store.end(run.id, thinking.seconds, {**asker.notes(), **notes})
    except KeyboardInterrupt:
        state = "cancelled"
        raise
    finally:
        store.set_state(run.id, state, time.monotonic() - started)
    progress(_title(run, told), 1, 1)
    return result_of(replace(store.run(run.id)), told)


class _Stopwatch:
    """Adds up the seconds that calls take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def time(self, call: Callable[[], _T]) -> _T:
        start = time.perf_counter()
        try:
            return call()
        finally:
            self.seconds += time.perf_counter() - start


def result_of(run: Run, trials: Sequence[StoredTrial]) -> RunResult:
    """The result that these trials make. Raises StoreError when none of them has full fidelity."""
    full = [trial for trial in trials if trial.fidelity == 1.0]
    if not full:
        raise StoreError(run.id, "the run has no trial on the full calibration data yet")
    best = min(full, key=lambda trial: trial.fitness)
    return RunResult(run, tuple(trials), best, best)


def _affordable(asked: list[Trial], left: float) -> list[Trial]:
    """The first trials that fit the evaluations that are left."""
    for count, trial in enumerate(asked):
        left -= trial.fidelity
        if left < -_ROUNDING:
            return asked[:count]
    return asked


def _answers(
    asked: list[Trial],
    log: list[StoredTrial],
    number: int,
    pool: Pool,
    store: RunStore,
    run: Run,
    problem: str,
) -> Iterator[StoredTrial]:
    """One scored trial per asked one, in asked order, each in the store before it is yielded."""
    replayed = log[number : number + len(asked)]
    for trial, scored in zip(asked, replayed, strict=False):
        if (trial.candidate, trial.fidelity) != (scored.candidate, scored.fidelity):
            raise StoreError(
                store.url,
                f"run {run.id!r}: trial {number} in the log is not what {run.algorithm!r} asks "
                "now; the algorithm "
                "changed since the run began, start it in another store",
            )
        number += 1
        yield scored
    rest = asked[len(replayed) :]
    known = store.known_scores(problem, [_key(trial) for trial in rest])
    missing = {_key(trial): trial.bound for trial in rest if _key(trial) not in known}
    scores = pool.evaluate(
        [key if math.isinf(bound) else (*key, bound) for key, bound in missing.items()]
    )
    for trial in rest:
        key = _key(trial)
        if key in known:
            scored = StoredTrial(*key, known[key], False, 0.0)
        else:
            score = next(scores)
            known[key] = score.fitness
            scored = StoredTrial(*key, score.fitness, True, score.seconds)
        # A score that was stopped at its bound is nobody else's answer.
        stopped = math.isinf(scored.fitness) and math.isfinite(trial.bound)
        store.append(run.id, "" if stopped else problem, number, scored)
        number += 1
        yield scored


def _key(trial: Trial) -> tuple[Candidate, float]:
    return trial.candidate, trial.fidelity


def _report(progress: Progress, run: Run, told: list[StoredTrial]) -> None:
    spent = int(sum(trial.fidelity for trial in told) + _ROUNDING)
    if spent < run.evaluations:  # the end is reported once, by the loop
        progress(_title(run, told), spent, int(run.evaluations))


def _title(run: Run, told: list[StoredTrial]) -> str:
    best = min((trial.fitness for trial in told if trial.fidelity == 1.0), default=float("inf"))
    return f"{run.algorithm} seed {run.seed}: best {best:.5g}"
