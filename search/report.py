"""The league table and what else is said about finished runs: plain data, which the command line prints or writes as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from db.runs import Run, RunStore
from search.problem import Problem
from search.run import RunResult


def league(results: Sequence[RunResult], problem: Problem) -> list[dict[str, Any]]:
    """One row per algorithm and parameter set, best median first. `best` and `median` (over seeds) are fitnesses, lower is
    better; `evaluations` is the median asked per seed, `scored` how many of them were not answered from the store;
    `seconds` is the median time of a run; `error_gap` how far the best profile's additive error lies above the optimum."""
    groups: dict[tuple[str, str], list[RunResult]] = {}
    for result in results:
        groups.setdefault((result.run.algorithm, str(sorted(result.run.parameters.items()))), []).append(result)
    rows = []
    for (name, _), group in groups.items():
        best = min(group, key=lambda r: r.best.fitness)
        rows.append(
            {
                "algorithm": name,
                "parameters": best.run.parameters,
                "best": best.best.fitness,
                "median": statistics.median(r.best.fitness for r in group),
                "seeds": len(group),
                "evaluations": statistics.median(r.evaluations for r in group),
                "scored": sum(t.evaluated for r in group for t in r.trials),
                "seconds": statistics.median(r.run.spent for r in group),
                "budgets_met": all(problem.whole.feasible(r.pick.candidate) for r in group),
                "run": best.run.id,
            }
        )
    return sorted(rows, key=lambda row: (row["median"], row["best"]))


def starting_points(results: Sequence[RunResult], problem: Problem) -> dict[str, float]:
    """Fitness of the uniform profile and of the additive optimum, where a run scored them."""
    known = {t.candidate: t.fitness for r in results for t in r.trials if t.fidelity == 1.0}
    expand = problem.decisions.expand
    points = {"uniform": expand(problem.space.uniform()), "additive optimum": expand(problem.space.optimum)}
    return {name: known[candidate] for name, candidate in points.items() if candidate in known}


def describe_run(run: Run, store: RunStore) -> dict[str, Any]:
    """A row of `apportion runs`."""
    told, evaluated, best = store.summary(run.id)
    return {
        "run": run.id,
        "job": run.job,
        "algorithm": run.algorithm,
        "seed": run.seed,
        "state": run.state,
        "trials": told,
        "scored": evaluated,
        "best": best,
        "seconds": run.spent,
    }


def describe_pick(result: RunResult, problem: Problem) -> dict[str, Any]:
    """What `apportion show RUN` says: the picked profile, its costs as fractions of the dense model, and when it was found."""
    best = result.pick
    return {
        "run": result.run.id,
        "algorithm": result.run.algorithm,
        "parameters": result.run.parameters,
        "seed": result.run.seed,
        "state": result.run.state,
        "evaluations": result.evaluations,
        "fitness": best.fitness,
        "best_fitness": result.best.fitness,
        "found_after": 1 + result.trials.index(best),
        "budgets": problem.bounds(),
        "costs": problem.ratios(best.candidate),
        "additive_error": problem.whole.error(best.candidate),
        "profile": {layer: str(level) for layer, level in problem.profile(best.candidate).items()},
    }
