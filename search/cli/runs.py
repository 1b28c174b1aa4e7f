"""Commands that read a run store: runs, compare, show."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from apportion.compressors.errors import ConfigurationError, StoreError
from apportion.compressors.secrets import masked
from apportion.db.runs.sqlite import sqlite_file, sqlite_url
from apportion.db.runs.store import RunStore
from apportion.search.cli.printing import cell, show, table
from apportion.search.cli.progress import TerminalProgress
from apportion.search.jobs.titles import title


def runs_command(options: argparse.Namespace) -> None:
    store = open_store(options)
    runs = store.runs()
    budgets = {job: _budgets(store, job) for job in dict.fromkeys(run.job for run in runs)}
    rows = [run.describe() | {"budgets": budgets[run.job]} for run in runs]
    columns = ("run", "job", "budgets", "algorithm", "seed", "state", "trials", "scored", "best")
    show(options, rows, lambda: table((*columns, "seconds"), rows))


def _budgets(store: RunStore, job: str) -> str:
    """What tells the points of a front apart."""
    found = store.job(job).get("budgets")
    return title(found) if isinstance(found, dict) else ""


def compare_command(options: argparse.Namespace) -> None:
    from apportion.search.report.figures import fitness_meaning
    from apportion.search.report.league import comparison, standings
    from apportion.search.runs.loop import result_of

    store = open_store(options)
    chosen = [store.run(name) for name in options.run_ids]
    if not chosen:
        finished = [run for run in store.runs() if run.state == "finished"]
        chosen = [
            run
            for run in finished
            if (run.job, run.evaluations) == (finished[-1].job, finished[-1].evaluations)
        ]
    if not chosen:
        raise ConfigurationError(
            f"{masked(store.url)} holds no finished runs; `apportion search` makes them"
        )
    for run in chosen:
        if run.state != "finished":
            raise ConfigurationError(
                f"run {run.id!r} is {run.state}: only finished runs can be compared"
            )
        if (run.job, run.evaluations) != (chosen[0].job, chosen[0].evaluations):
            raise ConfigurationError(
                f"only runs of one job with equal evaluations can be compared: {chosen[0].id!r} "
                f"has {chosen[0].evaluations:g} "
                f"on job {chosen[0].job}, {run.id!r} {run.evaluations:g} on job {run.job}"
            )
    results = [result_of(run, store.trials(run.id)) for run in chosen]
    rows, tests, spec = standings(results), comparison(results), store.job(chosen[0].job)

    meaning, name = fitness_meaning(spec), spec.get("fitness", "error")

    def text() -> None:
        print(f"fitness {name}, {meaning}; lower is better")
        table(
            (
                "algorithm",
                "best",
                "median",
                "q1",
                "q3",
                "area",
                "to_best",
                "wins",
                "seeds",
                "evaluations",
                "seconds",
                "thinking",
            ),
            rows,
        )
        if len(rows) > 1 and tests["seeds"]:
            ranks = ", ".join(
                f"{name} {rank:.2f}"
                for name, rank in sorted(tests["ranks"].items(), key=lambda item: item[1])
            )
            print(
                f"mean ranks over seeds {tests['seeds']}: {ranks}; critical difference "
                f"{tests['critical_difference']:.2f}"
            )
            table(
                ("better", "worse", "median_difference", "p"),
                sorted(tests["pairwise"], key=lambda test: test["p"]),
            )
            if len(tests["seeds"]) < 6:
                print("with fewer than six common seeds no pair can differ at p < 0.05")

    show(options, {"standings": rows, "comparison": tests}, text)


def show_command(options: argparse.Namespace) -> None:
    from apportion.search.report.league import describe_pick

    with TerminalProgress() as progress:
        problem, result = load_run(options, progress)
    with problem:
        content = describe_pick(result, problem)

    def text() -> None:
        keys = ("run", "state", "task", "metric", "evaluations", "fitness", "best_fitness")
        for key in (*keys, "found_after", "additive_error"):
            told = f" ({content['fitness_name']}, lower is better)" if "fitness" in key else ""
            if key in content:
                print(f"{key.replace('_', ' ')}: {cell(content[key])}{told}")
        for metric, ratio in content["costs"].items():
            budget = content["budgets"].get(metric)
            print(f"{metric}: {ratio:.4f} of dense" + (f" (budget {budget:g})" if budget else ""))
        table(("layer", "level"), [{"layer": k, "level": v} for k, v in content["profile"].items()])

    show(options, content, text)


def load_run(options: argparse.Namespace, progress: TerminalProgress) -> tuple[Any, Any]:
    from apportion.search.jobs.job_file import restore_job
    from apportion.search.runs.loop import result_of
    from apportion.search.runs.pipeline import pick, prepare

    store = open_store(options)
    run = store.run(options.run_id)
    # A front's point is another job than its budgets alone.
    problem = replace(prepare(restore_job(store.job(run.job)), progress), id=run.job)
    return problem, pick(result_of(run, store.trials(run.id)), problem, store, progress)


def open_store(options: argparse.Namespace) -> RunStore:
    url = store_url(options)
    if url is None:
        raise StoreError(
            default_store(),
            "no such file; `apportion search` makes it beside the job file, name it with --store",
        )
    return RunStore(url, reading=True)


def store_url(options: argparse.Namespace) -> str | None:
    """The run store that is asked for; None where none is, and there is none in the current
    folder."""
    url = options.store or os.environ.get("APPORTION_STORE")
    if url is None:
        return default_store() if Path("apportion.sqlite").is_file() else None
    file = sqlite_file(url)
    if file is not None and not file.is_file():
        raise StoreError(
            url,
            "no such file; `apportion search` makes it beside the job file, name it with --store",
        )
    return str(url)


def default_store() -> str:
    return sqlite_url("apportion.sqlite")
