"""What the run of a front's point begins from: what the tighter point's run of the same algorithm,
parameters and seed found. Its profiles meet the looser budgets too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from apportion.compressors.errors import AlgorithmError, StoreError
from apportion.search.algorithms.base import Algorithm
from apportion.search.runs.loop import RunResult
from apportion.search.runs.problem import Problem
from apportion.search.space.additive import optimum, solve
from apportion.search.space.moves import encode, spent
from apportion.search.space.space import Candidate

TIGHTER = "tighter"
"""The key of a run's notes that says what it began from."""


def begin_from(algorithm: Algorithm, problem: Problem, tighter: RunResult) -> None:
    """Let the algorithm ask at its beginning, after its own starting profiles, for the best one and
    the pick of the tighter point's run, which scored them already, and for the additive optimum
    moved as far as that best one lies from the optimum at its own cost, and half as far: what the
    table has wrong of a layer at one budget it has wrong at the next."""
    space, condense = problem.space, problem.decisions.condense
    best, picked = condense(tighter.best.candidate), condense(tighter.pick.candidate)
    costs = {metric: space.total(metric, best) for metric in space.budgets}
    there, here = solve(replace(space, budgets=costs)), optimum(space)
    moved = encode(space, best) - encode(space, there)
    starts = [spent(space, encode(space, here) + share * moved) for share in (1.0, 0.5)]
    algorithm.begin_with([best, picked, *starts])


def lineage(tighter: RunResult | None) -> dict[str, Any]:
    """For the run's notes: the run that it began from, and that one's pick, which stays among
    those that its own pick is made of."""
    if tighter is None:
        return {}
    return {TIGHTER: {"run": tighter.run.id, "pick": list(tighter.pick.candidate)}}


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


def check_not_dominated(result: RunResult, tighter: RunResult | None) -> None:
    """A profile of a tighter point is one of this point's too, so that no run ends with a worse
    one. Raises AlgorithmError for an algorithm that does not ask for what it is given to begin
    with."""
    if tighter is not None and result.best.fitness > tighter.best.fitness:
        raise AlgorithmError(
            result.run.algorithm,
            "did not ask for the profiles that a front begins each point with (Algorithm.ask hands "
            "them out), and ended with a worse one than the tighter point's",
        )
