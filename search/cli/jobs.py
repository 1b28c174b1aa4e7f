"""Commands that work on a job: build, search; and the job file's schema."""

from __future__ import annotations

import argparse
import json
import shlex
from typing import Any

from apportion.compressors.secrets import masked
from apportion.db.runs.store import RunStore
from apportion.search.cli.printing import show, table
from apportion.search.cli.progress import TerminalProgress
from apportion.search.cli.runs import default_store


def build_command(options: argparse.Namespace) -> None:
    from apportion.search.jobs.job_file import load_model_job
    from apportion.search.runs.building import build

    job = load_model_job(options.job)
    with TerminalProgress() as progress:
        _, database = build(job, progress)
    entries = [entry for record in database.layers.values() for entry in record.entries]
    content: dict[str, Any] = {
        "path": str(database.path),
        "fingerprint": database.fingerprint,
        "layers": len(database.layers),
        "entries": len(entries),
        "bytes": sum(entry.bits for entry in entries) // 8,
        "tied": {
            name: list(record.aliases) for name, record in database.layers.items() if record.aliases
        },
    }

    def text() -> None:
        size = f"{content['bytes'] / 2**20:.1f} MiB"
        print(
            f"{content['path']}: {content['layers']} layers, {content['entries']} entries, {size}"
        )
        for name, others in content["tied"].items():
            print(f"tied weights, one entry for all: {', '.join([name, *others])}")

    show(options, content, text)


def search_command(options: argparse.Namespace) -> None:
    from apportion.search.export.exporting import check_formats, check_job
    from apportion.search.jobs.job import Job
    from apportion.search.jobs.job_file import load_job
    from apportion.search.report.league import comparison, league, starting_points, table_agrees
    from apportion.search.runs.pipeline import ModelProblem, check_single, prepare, run_search
    from apportion.search.runs.precision import precision_agrees

    job = load_job(options.job)
    check_single(job)
    if isinstance(job, Job):
        check_job(options.format, job)
    assert job.store is not None  # load_job sets it
    store = RunStore(job.store)
    shown = masked(job.store)
    with TerminalProgress() as progress:
        problem = prepare(job, progress)
        rho = None
        if isinstance(problem, ModelProblem) and problem.job.workers.precision != "float32":
            rho = precision_agrees(problem, progress)
        with problem:
            if isinstance(problem, ModelProblem):
                check_formats(options.format, problem)
            results = run_search(problem, store, progress)
    rows, points = league(results, problem), starting_points(results, problem)
    agreement = table_agrees(results, problem)
    content: dict[str, Any] = {
        "job": problem.id,
        "store": shown,
        "fitness": job.fitness,
        "starting_points": points,
        "league": rows,
        "table_agrees": agreement,
        "table": problem.about().get("table", {}),
        "comparison": comparison(results),
        "workers_replaced": dict(problem.events),
        "precision_agrees": rho,
    }

    def text() -> None:
        for name, fitness in points.items():
            print(f"{name}: {job.fitness} {fitness:.5g} (lower is better)")
        columns = (
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
        )
        table((*columns, "seconds", "thinking", "budgets_met", "run"), rows)
        for result in results:
            if earned := result.run.notes.get("earned"):
                print(
                    f"{result.run.id}: {job.fitness} lowered by "
                    + ", ".join(f"{n} {v:.3g}" for n, v in earned.items())
                )
        if agreement is not None:
            print(
                f"rank correlation of additive error and {job.fitness}: {agreement:.3f} (near 1, "
                "`milp` alone would do)"
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
        store_option = "" if job.store == default_store() else f" --store {shlex.quote(shown)}"
        best = min(rows, key=lambda row: row["best"])["run"]
        formats = f" --format {shlex.join(options.format)}" if options.format else ""
        verb, rest = ("export", f" -o out/{formats}") if isinstance(job, Job) else ("show", "")
        print(f"runs are in {shown}; {verb} the best one with")
        print(f"  apportion {verb} {best}{rest}{store_option}")

    show(options, content, text)


def schema_command(_options: argparse.Namespace) -> None:
    from apportion.search.jobs.job_file import json_schema

    print(json.dumps(json_schema(), indent=1))
