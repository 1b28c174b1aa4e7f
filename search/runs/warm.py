"""What the run of a front's point begins from: all that the tighter points' runs of the same
algorithm, parameters and seed found. Their profiles meet the looser budgets too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from apportion.compressors.errors import AlgorithmError, StoreError
from apportion.db.runs.records import StoredTrial
from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.learned import LearnedErrors
from apportion.search.runs.loop import LOWEST_BOUND, RunResult
from apportion.search.runs.problem import Problem
from apportion.search.space.additive import optimum
from apportion.search.space.repair import fill
from apportion.search.space.space import Candidate, SearchSpace

TIGHTER = "tighter"
"""The key of a run's notes that says what it began from."""


def begin_from(algorithm: Algorithm, problem: Problem, earlier: Sequence[RunResult]) -> None:
    """Let the algorithm hear of the profiles that `earlier` runs were told of in full, the tightest
    point's first, and ask at its beginning for the best and the pick of the last one, for that best
    with the budgets spent, and for the optimum of the additive table as the trials correct it."""
    space, condense = problem.space, problem.decisions.condense
    told = {
        condense(trial.candidate): trial.fitness for result in earlier for trial in _told(result)
    }
    for candidate, fitness in told.items():
        algorithm.inform(candidate, fitness)
    last = earlier[-1]
    best, picked = condense(last.best.candidate), condense(last.pick.candidate)
    algorithm.begin_with([best, picked, fill(space, best), _corrected_optimum(space, told)])


def lineage(earlier: Sequence[RunResult]) -> dict[str, Any]:
    """For the run's notes: the run that it began from, and that one's pick, which stays among
    those that its own pick is made of."""
    if not earlier:
        return {}
    last = earlier[-1]
    return {TIGHTER: {"run": last.run.id, "pick": list(last.pick.candidate)}}


def tighter_pick(result: RunResult) -> Candidate | None:
    """The pick of the run that this one began from. Raises StoreError where this run, which asked
    for it, does not have it."""
    if TIGHTER not in result.run.notes:
        return None
    found = result.run.notes[TIGHTER]
    pick = found.get("pick") if isinstance(found, dict) else None
    for trial in result.trials:
        if trial.fidelity == 1.0 and list(trial.candidate) == pick:
            return trial.candidate
    raise StoreError(
        result.run.id,
        "its notes name a tighter point's pick that is none of its trials; the store was altered, "
        "or a newer version wrote it",
    )


def check_not_dominated(result: RunResult, earlier: Sequence[RunResult]) -> None:
    """A profile of a tighter point is one of this point's too, so that no run ends with a worse
    one. Raises AlgorithmError for an algorithm that does not ask for what it is given to begin
    with."""
    if earlier and result.best.fitness > earlier[-1].best.fitness:
        raise AlgorithmError(
            result.run.algorithm,
            "did not ask for the profiles that a front begins each point with (Algorithm.ask hands "
            "them out), and ended with a worse one than the tighter point's",
        )


def _told(result: RunResult) -> Iterator[StoredTrial]:
    """In full and with a finite fitness. One above a bound is in the log as what the scorer said,
    which stops there or does not, and the course must not depend on that."""
    lowest = result.run.notes.get(LOWEST_BOUND, result.best.fitness)
    limit = math.inf if lowest is None else lowest
    for trial in result.trials:
        if trial.fidelity == 1.0 and math.isfinite(trial.fitness) and trial.fitness <= limit:
            yield trial


def _corrected_optimum(space: SearchSpace, told: dict[Candidate, float]) -> Candidate:
    learned = LearnedErrors(space)
    learned.learn([Trial(candidate, 1.0, fitness) for candidate, fitness in told.items()])
    rows = tuple(
        row[:count] for row, count in zip(learned.table, space.counts.tolist(), strict=True)
    )
    return optimum(replace(space, errors=rows))
