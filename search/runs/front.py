"""The whole front from one job: a search at each point, from the tightest to the loosest, on one
database, one additive table and one store of scores.

Each point is an ordinary job in the run store, whose runs begin from those of the tighter points
(`warm`); so replay, export and comparison are those of any job."""

from __future__ import annotations

from collections.abc import Sequence

from apportion.compressors.errors import InfeasibleBudgetError
from apportion.compressors.progress import Progress, silent
from apportion.db.runs.store import RunStore
from apportion.search.jobs.job import AnyJob
from apportion.search.jobs.titles import title
from apportion.search.runs.loop import RunResult
from apportion.search.runs.pipeline import prepare, run_search
from apportion.search.runs.problem import Problem


def prepare_points(job: AnyJob, progress: Progress = silent) -> list[Problem]:
    """The problem of each point, the tightest first; one of a job that is no front. They share
    their workers: close any of them. Raises InfeasibleBudgetError, which names the point, and what
    `prepare` raises."""
    jobs = job.points()
    try:
        first = prepare(jobs[0], progress)
    except InfeasibleBudgetError as error:
        if len(jobs) == 1:
            raise
        raise InfeasibleBudgetError(
            error.metric,
            error.bound,
            error.least,
            error.layer,
            f"the point {title(jobs[0].budgets)} {error.reason}",
        ) from error
    points: list[Problem] = [first]
    for own in jobs[1:]:
        points.append(first.at(own, [point.id for point in points]))
    return points


def run_points(
    points: Sequence[Problem], store: RunStore, progress: Progress = silent
) -> list[list[RunResult]]:
    """`run_search` at every point, in order. Stopped anywhere, the same call goes on there and ends
    with the same results."""
    found: list[list[RunResult]] = []
    for problem in points:
        found.append(run_search(problem, store, progress, found[-1] if found else None))
    return found
