"""The league table and what else is said about finished runs: plain data, which the command line
prints or writes as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from apportion.db.runs.store import Run
from apportion.search.report.statistics import (
    Anytime,
    better_of,
    critical_difference,
    mean_ranks,
    pairwise,
)
from apportion.search.runs.loop import RunResult
from apportion.search.runs.problem import Problem
from apportion.search.space.additive import optimum
from apportion.search.space.repair import uniform
from apportion.search.space.space import Candidate


def standings(results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """One row per algorithm and parameter set, best median first; what the run store alone tells.
    `best`, `median` and the quartiles `q1`, `q3` (over seeds) are fitnesses, `area` the median over
    seeds of the mean best-so-far fitness during a run, all lower is better; `to_best`: evaluations
    until the best fitness of all these runs was reached within 1 %, median over seeds, None where
    most seeds never did; `evaluations` is the median asked per seed, `scored` how many of them were
    not answered from the store; `seconds` is the median time of a run, `thinking` what of it the
    algorithm itself took; `wins`: how many others it is better than, p < 0.05 after Holm."""
    groups = _groups(results)
    lowest = min(r.best.fitness for r in results)
    target = lowest + 0.01 * abs(lowest)
    tests = comparison(results)["pairwise"]
    rows = []
    for name, group in groups.items():
        finals = [r.best.fitness for r in group]
        best = min(group, key=lambda r: r.best.fitness)
        q1, median, q3 = np.quantile(finals, [0.25, 0.5, 0.75]).tolist()
        rows.append(
            {
                "algorithm": name,
                "parameters": best.run.parameters,
                "best": best.best.fitness,
                "median": median,
                "q1": q1,
                "q3": q3,
                "area": statistics.median(_curve(r).area for r in group),
                "to_best": _median_reached(group, target),
                "wins": sum(test["better"] == name and test["p"] < 0.05 for test in tests),
                "seeds": len(group),
                "evaluations": statistics.median(r.evaluations for r in group),
                "scored": sum(t.evaluated for r in group for t in r.trials),
                "seconds": statistics.median(r.run.spent for r in group),
                "thinking": statistics.median(r.run.thought or 0.0 for r in group),
                "run": best.run.id,
            }
        )
    return sorted(rows, key=lambda row: (row["median"], row["area"]))


def _curve(result: RunResult) -> Anytime:
    return Anytime.of([(t.fidelity, t.fitness) for t in result.trials], result.run.evaluations)


def _median_reached(group: Sequence[RunResult], target: float) -> float | None:
    """Evaluations until `target`, median over the runs; None where most never reached it."""
    reached = sorted(
        math.inf if (hit := _curve(result).reached(target)) is None else hit for result in group
    )
    middle = reached[(len(reached) - 1) // 2]
    return middle if math.isfinite(middle) else None


def comparison(results: Sequence[RunResult]) -> dict[str, Any]:
    """Tests over the seeds that all algorithms have in common: `pairwise`, Wilcoxon's signed-rank p
    after Holm for every pair, and by how much the worse one's fitness is higher, as median;
    `ranks`, the mean rank of each; `critical_difference` of mean ranks at 5 % (Nemenyi)."""
    groups = _groups(results)
    seeds = sorted(set.intersection(*({r.run.seed for r in group} for group in groups.values())))
    if not seeds:
        return {"seeds": [], "pairwise": [], "ranks": {}, "critical_difference": None}
    by_seed = {name: {r.run.seed: r.best.fitness for r in group} for name, group in groups.items()}
    finals = {name: [own[seed] for seed in seeds] for name, own in by_seed.items()}
    tests = []
    for (a, b), p in pairwise(finals).items():
        better, worse = (b, a) if better_of(finals[a], finals[b]) else (a, b)
        median = float(np.median(np.subtract(finals[worse], finals[better])))
        tests.append({"better": better, "worse": worse, "median_difference": median, "p": p})
    return {
        "seeds": seeds,
        "pairwise": tests,
        "ranks": mean_ranks(finals),
        "critical_difference": critical_difference(len(finals), len(seeds)),
    }


def league(results: Sequence[RunResult], problem: Problem) -> list[dict[str, Any]]:
    """`standings` with what the problem adds: whether all picks meet the budgets; `error_gap`, by
    which share the additive error of the best profile lies above the proven optimum; `to_optimum`,
    evaluations until a fitness below that optimum's was found, median over seeds, None where most
    seeds never did."""
    groups = _groups(results)
    rows = standings(results)
    reference = starting_points(results, problem).get("additive optimum", -math.inf)
    for row in rows:
        group = groups[row["algorithm"]]
        best = min(group, key=lambda r: r.best.fitness).best.candidate
        row["to_optimum"] = _median_reached(group, np.nextafter(reference, -math.inf))
        row["budgets_met"] = all(problem.full_space.feasible(r.pick.candidate) for r in group)
        row["error_gap"] = additive_gap(problem, best)
    return rows


def additive_gap(problem: Problem, candidate: Candidate) -> float | None:
    """By which share a candidate's additive error lies above the proven optimum; None where that is
    not above 0."""
    least = problem.full_space.error(problem.decisions.expand(optimum(problem.space)))
    return problem.full_space.error(candidate) / least - 1 if least > 0 else None


def table_agrees(results: Sequence[RunResult], problem: Problem) -> float | None:
    """Spearman's rank correlation between additive error and fitness over all profiles scored in
    full: near 1, the additive optimum is all there is to find, and a search is hardly worth its
    evaluations. None with fewer than ten profiles."""
    scored = {
        t.candidate: t.fitness
        for r in results
        for t in r.trials
        if t.fidelity == 1.0 and math.isfinite(t.fitness)
    }
    if len(scored) < 10:
        return None
    from scipy.stats import spearmanr  # takes most of a second to import

    correlation = spearmanr(
        [problem.full_space.error(candidate) for candidate in scored], list(scored.values())
    ).statistic
    return float(correlation) if math.isfinite(correlation) else None


def _groups(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Results by algorithm; several parameter sets of one algorithm by name and parameters."""
    sets: dict[str, set[str]] = {}
    for result in results:
        sets.setdefault(result.run.algorithm, set()).add(_parameters(result.run))
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        name = result.run.algorithm
        groups.setdefault(
            f"{name} {_parameters(result.run)}" if len(sets[name]) > 1 else name, []
        ).append(result)
    return groups


def _parameters(run: Run) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(run.parameters.items())) or "default"


def starting_points(results: Sequence[RunResult], problem: Problem) -> dict[str, float]:
    """Fitness of the uniform profile and of the additive optimum, where a run scored them."""
    known = {t.candidate: t.fitness for r in results for t in r.trials if t.fidelity == 1.0}
    expand = problem.decisions.expand
    points = {
        "uniform": expand(uniform(problem.space)),
        "additive optimum": expand(optimum(problem.space)),
    }
    return {name: known[candidate] for name, candidate in points.items() if candidate in known}


def describe_pick(result: RunResult, problem: Problem) -> dict[str, Any]:
    """What `apportion show RUN` says: the picked profile, its costs as fractions of the dense
    model, and when it was found."""
    best = result.pick
    return {
        "run": result.run.id,
        "algorithm": result.run.algorithm,
        "parameters": result.run.parameters,
        "seed": result.run.seed,
        "state": result.run.state,
        "evaluations": result.evaluations,
        "fitness": best.fitness,
        "fitness_name": problem.job.fitness,
        **problem.about(),
        "best_fitness": result.best.fitness,
        "found_after": 1 + result.trials.index(best),
        "budgets": problem.bounds(),
        "costs": problem.ratios(best.candidate),
        "notes": result.run.notes,
        "additive_error": problem.full_space.error(best.candidate),
        "profile": {layer: str(level) for layer, level in problem.profile(best.candidate).items()},
    }
