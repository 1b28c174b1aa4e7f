"""The command that searches: a job, or each point of a front."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

from apportion.compressors.secrets import masked
from apportion.db.runs.store import RunStore
from apportion.search.cli.printing import show, table
from apportion.search.cli.progress import TerminalProgress
from apportion.search.cli.runs import default_store
from apportion.search.jobs.titles import title

_LEAGUE = (
    "algorithm",
    "best",
    "median",
    "area",
    "to_optimum",
    "to_best",
    "error_gap",
    "seeds",
    "evaluations",
    "scored",
    "seconds",
    "thinking",
    "budgets_met",
    "run",
)


def search_command(options: argparse.Namespace) -> None:
    from apportion.search.export.exporting import check_formats, check_job
    from apportion.search.jobs.job import Job
    from apportion.search.jobs.job_file import load_job
    from apportion.search.report.front import front
    from apportion.search.runs.front import prepare_points, run_points
    from apportion.search.runs.pipeline import ModelProblem, check_single
    from apportion.search.runs.precision import precision_agrees

    job = load_job(options.job)
    check_single(job)
    if isinstance(job, Job):
        check_job(options.format, job)
    assert job.store is not None  # load_job sets it
    store = RunStore(job.store)
    shown = masked(job.store)
    with TerminalProgress() as progress:
        points = prepare_points(job, progress)
        problem, rho = points[0], None
        if isinstance(problem, ModelProblem) and problem.job.workers.precision != "float32":
            rho = precision_agrees(problem, progress)
        with problem:
            if isinstance(problem, ModelProblem):
                check_formats(options.format, problem)
            results = run_points(points, store, progress)
    told = [_point(*one) for one in zip(results, points, strict=True)]
    rows = front(points, results) if job.is_front else []
    content: dict[str, Any] = {
        "store": shown,
        "fitness": job.fitness,
        **({"front": rows, "points": told} if job.is_front else told[0]),
        "table": problem.about().get("table", {}),
        "workers_replaced": dict(problem.events),
        "precision_agrees": rho,
    }

    def text() -> None:
        for point, own in zip(told, results, strict=True):
            if job.is_front:
                print(f"{title(point['budgets'])}:")
            _print_point(point, job.fitness)
            for result in own:
                if earned := result.run.notes.get("earned"):
                    print(
                        f"{result.run.id}: {job.fitness} lowered by "
                        + ", ".join(f"{n} {v:.3g}" for n, v in earned.items())
                    )
        if (said := content["table"]).get("probes"):
            ranks = [said[f"rank_correlation_{when}"] for when in ("before", "after")]
            before, after = ("-" if rank is None else f"{rank:.3f}" for rank in ranks)
            print(
                f"rank correlation of {said['probes']} probes with layer errors: {before}; with "
                f"what the layer's other probe says: {after}"
            )
        if rho is not None:
            print(f"rank correlation with float32 over 64 profiles: {rho:.4f}")
        if problem.events:
            print(
                "workers replaced: "
                + ", ".join(f"{count} {what}" for what, count in problem.events.items())
            )
        if rows:
            _print_front(rows)
        store_option = "" if job.store == default_store() else f" --store {shlex.quote(shown)}"
        best = min(told[0]["league"], key=lambda row: row["best"])["run"]
        formats = f" --format {shlex.join(options.format)}" if options.format else ""
        verb, rest = ("export", f" -o out/{formats}") if isinstance(job, Job) else ("show", "")
        which = "any of them" if rows else "the best one"
        print(f"runs are in {shown}; {verb} {which} with")
        print(f"  apportion {verb} {'RUN' if rows else best}{rest}{store_option}")

    show(options, content, text)


def _point(results: Sequence[Any], problem: Any) -> dict[str, Any]:
    from apportion.search.report.league import comparison, league, starting_points, table_agrees

    return {
        "job": problem.id,
        "budgets": problem.job.budgets,
        "starting_points": starting_points(results, problem),
        "league": league(results, problem),
        "table_agrees": table_agrees(results, problem),
        "comparison": comparison(results),
    }


def _print_point(point: dict[str, Any], fitness: str) -> None:
    for name, value in point["starting_points"].items():
        print(f"{name}: {fitness} {value:.5g} (lower is better)")
    table(_LEAGUE, point["league"])
    if point["table_agrees"] is not None:
        print(
            f"rank correlation of additive error and {fitness}: {point['table_agrees']:.3f} (near "
            "1, `milp` alone would do)"
        )


def _print_front(rows: Sequence[dict[str, Any]]) -> None:
    """Costs are fractions of the dense model; all but the last columns: lower is better."""
    metrics = list(rows[0]["costs"])
    columns = ["point", *metrics, "fitness", "unseen", "error", "error_gap", "evaluations"]
    print("the front: costs as fractions of the dense model; lower is better")
    table([*columns, "scored", "run"], [{**row, **row["costs"]} for row in rows])
