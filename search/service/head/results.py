"""What a submitted job's search leaves: standings and the best profile; of a front for each point,
in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apportion.compressors.progress import Progress
from apportion.db.files import finite, write_json
from apportion.search.export.exporting import export
from apportion.search.jobs.titles import folder_name
from apportion.search.report.front import chosen, front
from apportion.search.report.league import comparison, describe_pick, league
from apportion.search.runs.loop import RunResult
from apportion.search.runs.pipeline import ModelProblem
from apportion.search.runs.problem import Problem


def write_results(
    out: Path,
    points: Sequence[Problem],
    found: Sequence[Sequence[RunResult]],
    progress: Progress,
    formats: Sequence[str],
) -> None:
    """league.json and the exported best profile (best/, or best.json of a job on a table); where
    there are several points, front.json, and the same in a folder for each, such as flops-4x/."""
    out.mkdir(parents=True, exist_ok=True)
    is_front = len(points) > 1
    if is_front:
        write_json(out / "front.json", finite({"front": front(points, found)}))
    for problem, results in zip(points, found, strict=True):
        place = out / folder_name(problem.job.budgets) if is_front else out
        place.mkdir(exist_ok=True)
        standings = {"league": league(results, problem), "comparison": comparison(results)}
        write_json(place / "league.json", finite(standings))
        best = chosen(results) if is_front else min(results, key=lambda r: r.pick.fitness)
        if isinstance(problem, ModelProblem):
            export(best, problem, place / "best", progress, formats)
        else:
            write_json(place / "best.json", describe_pick(best, problem))
