"""What the page shows of a job, as plain data: from the run store alone, so that it is quick while
the job runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from apportion.compressors.errors import StoreError
from apportion.db.files import finite
from apportion.db.runs.store import Run, RunStore, StoredTrial
from apportion.evaluators.scoring.fitness import MEANINGS
from apportion.search.report.league import comparison, standings
from apportion.search.report.statistics import Anytime
from apportion.search.runs.loop import RunResult, result_of

_POINTS = 200
"""Points of a curve, and ..."""
_TRIALS = 2000
"""... trials of a job that are shown at most: the best ones, and of the others an even choice."""


def job_summary(store: RunStore, job: str) -> dict[str, Any]:
    """A row in the list of jobs. Does not read trials."""
    runs, spec = store.runs(job), store.job(job)
    best = min((run.best for run in runs if run.best is not None), default=None)
    states = {run.state for run in runs}
    asked, allowed = sum(run.asked for run in runs), sum(run.evaluations for run in runs)
    algorithms = list(dict.fromkeys(run.algorithm for run in runs))
    state = job_state(states, store.holder(job) is not None)
    return summary_row(job, spec, algorithms, state, (asked, allowed, best))


def job_state(states: set[str], is_held: bool) -> str:
    """Of a job whose runs are in `states`; `is_held`: a process works on it."""
    return "running" if is_held else "finished" if states == {"finished"} else "stopped"


def summary_row(
    job: str,
    spec: dict[str, Any],
    algorithms: list[str],
    state: str,
    told: tuple[float, float, float | None],
) -> dict[str, Any]:
    """A row in the list of jobs.

    Args:
        job: Its id.
        spec: The job as the store keeps it.
        algorithms: Their names, in order.
        state: As `job_state` says.
        told: Evaluations asked for and allowed, and the best fitness (lower is better).

    Returns:
        The row as JSON takes it.
    """
    asked, allowed, best = told
    return {
        "job": job,
        "state": state,
        "fitness": spec.get("fitness", "error"),
        "budgets": spec.get("budgets", {}),
        "algorithms": algorithms,
        "asked": asked,
        "evaluations": allowed,
        "best": finite(best),
    }


def job_figures(store: RunStore, job: str) -> dict[str, Any]:
    """All that the page shows of one job. Numbers that are not finite are None."""
    runs = store.runs(job)
    told = {run.id: store.trials(run.id) for run in runs}
    results = [found for run in runs if (found := _result(run, told[run.id])) is not None]
    space = store.space(job)
    figures = {
        "summary": job_summary(store, job) | {"meaning": fitness_meaning(store.job(job))},
        "runs": [run.describe() | {"notes": run.notes} for run in runs],
        "space": space,
        "curves": _curves(results),
        "league": standings(results) if results else [],
        "comparison": comparison(results) if len({r.run.algorithm for r in results}) > 1 else None,
        "picks": [_pick(store, result) for result in results],
        "trials": _trials(told),
    }
    return dict(finite(figures))


def fitness_meaning(spec: dict[str, Any]) -> str:
    """What a job's fitness is; `spec`: the job as the store keeps it."""
    workload = spec.get("workload")
    if isinstance(workload, dict) and "table" in workload:
        return "the additive error"
    name = str(spec.get("fitness", "error"))
    return MEANINGS.get(name, name)


def _result(run: Run, trials: Sequence[StoredTrial]) -> RunResult | None:
    """None before the first finite score on all calibration data."""
    try:
        result = result_of(run, trials)
    except StoreError:
        return None
    return result if math.isfinite(result.best.fitness) else None


def _pick(store: RunStore, result: RunResult) -> dict[str, Any]:
    """The final pick of a run, or its best so far."""
    scores = store.selection(result.run.id)
    candidate = min(scores, key=scores.__getitem__) if scores else result.best.candidate
    return {
        "run": result.run.id,
        "algorithm": result.run.algorithm,
        "seed": result.run.seed,
        "candidate": list(candidate),
    }


def _curves(results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Best fitness so far by evaluations, per algorithm: the median over its runs, and their lowest
    and highest."""
    if not results:
        return []
    end = max(max(r.evaluations, 1.0) for r in results)
    places = np.unique(
        np.concatenate([np.linspace(1, end, _POINTS), np.geomspace(1, end, _POINTS)]).round(2)
    )
    curves = []
    for algorithm in dict.fromkeys(r.run.algorithm for r in results):
        group = [r for r in results if r.run.algorithm == algorithm]
        rows = np.full((len(group), len(places)), np.nan)
        for row, result in zip(rows, group, strict=True):
            course = Anytime.of(
                [(t.fidelity, t.fitness) for t in result.trials], result.run.evaluations
            )
            at = np.searchsorted(course.spent, places + 1e-9, side="right") - 1
            row[at >= 0] = course.best[at[at >= 0]]
            if result.run.state != "finished":
                row[places > result.evaluations + 1e-9] = np.nan
        there = ~np.isnan(rows).any(axis=0) & np.isfinite(rows).all(axis=0)
        if there.any():
            curves.append(
                {
                    "algorithm": algorithm,
                    "runs": len(group),
                    "evaluations": places[there].tolist(),
                    "median": np.median(rows[:, there], axis=0).tolist(),
                    "low": rows[:, there].min(axis=0).tolist(),
                    "high": rows[:, there].max(axis=0).tolist(),
                }
            )
    return curves


def _trials(told: dict[str, list[StoredTrial]]) -> list[dict[str, Any]]:
    """Scored in full, each candidate once: run, number, fitness, candidate as text."""
    first: dict[tuple[int, ...], dict[str, Any]] = {}
    for run, trials in told.items():
        for number, trial in enumerate(trials):
            if (
                trial.fidelity == 1.0
                and math.isfinite(trial.fitness)
                and trial.candidate not in first
            ):
                first[trial.candidate] = {
                    "run": run,
                    "number": number,
                    "fitness": trial.fitness,
                    "candidate": ",".join(map(str, trial.candidate)),
                }
    ranked = sorted(first.values(), key=lambda row: row["fitness"])
    if len(ranked) <= _TRIALS:
        return ranked
    half = _TRIALS // 2
    rest = ranked[half:]
    return ranked[:half] + [rest[i * len(rest) // half] for i in range(half)]
