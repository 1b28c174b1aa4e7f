"""A front as a table: one row for each point, no point dominated by a tighter one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apportion.search.jobs.titles import title
from apportion.search.report.league import additive_gap
from apportion.search.runs.loop import RunResult
from apportion.search.runs.problem import Problem


def chosen(results: Sequence[RunResult]) -> RunResult:
    """The run whose pick is taken at a point: by what picks are made by, the divergence on unseen
    samples; by fitness where none was measured. As each run's pick is no worse than that of the run
    it began from, neither is this one than the tighter point's."""
    return min(results, key=lambda r: r.pick.fitness if r.score is None else r.score)


def front(
    points: Sequence[Problem], results: Sequence[Sequence[RunResult]]
) -> list[dict[str, Any]]:
    """One row per point, the tightest first: the run that is `chosen` there, its pick's `costs` as
    fractions of the dense model (of the budgeted metrics), its `fitness`, and `unseen`, its
    divergence on the samples of the final pick (None where none was measured); the additive `error`
    and by which share that lies above the proven optimum (`error_gap`); over all runs of the point
    the `evaluations` asked for, and those that had to be `scored`. All but the last two: lower is
    better."""
    rows = []
    for problem, own in zip(points, results, strict=True):
        best = chosen(own)
        costs = problem.ratios(best.pick.candidate)
        trials = [trial for result in own for trial in result.trials]
        rows.append(
            {
                "point": title(problem.job.budgets),
                "costs": {metric: costs[metric] for metric in problem.bounds()},
                "fitness": best.pick.fitness,
                "unseen": best.score,
                "error": problem.full_space.error(best.pick.candidate),
                "error_gap": additive_gap(problem, best.pick.candidate),
                "evaluations": sum(trial.fidelity for trial in trials),
                "scored": sum(trial.fidelity for trial in trials if trial.evaluated),
                "run": best.run.id,
            }
        )
    return rows
