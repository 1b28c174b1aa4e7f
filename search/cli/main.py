"""The command line: arguments and printing only."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from apportion.compressors.errors import ConfigurationError, StoreError
from apportion.compressors.secrets import masked
from apportion.db.runs.sqlite import sqlite_file, sqlite_url
from apportion.db.runs.store import RunStore
from apportion.search.cli import evaluators, export, recipe, service, web
from apportion.search.cli.failures import debug_option, tell
from apportion.search.cli.printing import cell, show, table
from apportion.search.cli.progress import TerminalProgress
from apportion.search.cli.streams import OutputLostError, standard_streams

_INTERRUPTED = 130
_LISTING = {"help", "runs", "compare", "show", "schema", "status", "logs"}
"""Commands that only print: their output's reader may leave before the end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 when it is done, 1 after an error that stderr
    explains, 130 after Ctrl-C."""
    options = argparse.Namespace(name="help", debug=False, all_or_nothing=True)
    try:
        with standard_streams():
            return _run(arguments, options)
    except OutputLostError as error:
        # `apportion runs | head`: who reads has seen enough.
        if options.name in _LISTING and error.closed:
            return 0
        if sys.stderr is not None:
            with suppress(OSError):
                print(f"apportion: {error}; what was finished is kept", file=sys.stderr)
        return 1


def _run(arguments: Sequence[str] | None, options: argparse.Namespace) -> int:
    """`options` is filled in."""
    _parser().parse_args(arguments, options)
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        options.run(options)
    except OutputLostError:
        raise
    except KeyboardInterrupt:
        kept = (
            "nothing was written"
            if options.all_or_nothing
            else "what was finished is kept, the same command goes on from there"
        )
        print(f"apportion: interrupted; {kept}", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        tell(error, options.debug)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="apportion",
        description="Decide how much to compress every layer of a network so that it meets its "
        "budgets at the least loss.",
        epilog="example: apportion search job.yaml && apportion runs",
    )
    parser.add_argument(
        "--version", action="version", version=importlib.metadata.version("apportion")
    )
    debug_option(parser, default=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], None], text: str, example: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, epilog=f"example: {example}")
        sub.set_defaults(name=name, run=run, all_or_nothing=False)
        debug_option(sub)
        return sub

    build = command(
        "build",
        _build,
        "Build a job's layer database, or go on with it.",
        "apportion build job.yaml",
    )
    search = command(
        "search",
        _search,
        "Run every algorithm x seed of a job, building what is missing; goes on where it was "
        "stopped.",
        "apportion search job.yaml --json > league.json",
    )
    for sub in (build, search):
        sub.add_argument("job", type=Path, help="the job file (docs/JOBS.md)")
    runs = command(
        "runs",
        _runs,
        "List the runs in a run store.",
        "apportion runs --store sqlite:///apportion.sqlite",
    )
    compare = command(
        "compare",
        _compare,
        "Compare runs of one job: standings, anytime performance, and rank tests over their common "
        "seeds.",
        "apportion compare spdy-s0-1a2b3c4d ga-s0-5e6f7a8b",
    )
    compare.add_argument(
        "run_ids",
        metavar="RUN",
        nargs="*",
        help="runs of one job; default: the finished runs of the newest job",
    )
    shown = command("show", _show, "Show a run's final profile.", "apportion show spdy-s0-1a2b3c4d")
    exporting = export.add_commands(command, _load_run)
    for sub in (shown, exporting):
        sub.add_argument("run_id", metavar="RUN", help="a run's id, as `apportion runs` lists it")
    for sub in (runs, compare, shown, exporting):
        sub.add_argument(
            "--store",
            help="URL of the run store; default: APPORTION_STORE, or apportion.sqlite in the "
            "current folder",
        )
    recipe.add_command(command)
    evaluators.add_commands(command, commands)
    service.add_commands(command)
    web.add_commands(command, _store_url)
    command(
        "schema", _schema, "Print the job file's JSON Schema.", "apportion schema > job.schema.json"
    )
    for sub in (build, search, runs, compare, shown):
        sub.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _build(options: argparse.Namespace) -> None:
    from apportion.search.jobs.job_file import load_model_job
    from apportion.search.runs.pipeline import build

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


def _search(options: argparse.Namespace) -> None:
    from apportion.search.jobs.job import Job
    from apportion.search.jobs.job_file import load_job
    from apportion.search.report.league import comparison, league, starting_points, table_agrees
    from apportion.search.runs.pipeline import ModelProblem, precision_agrees, prepare, run_search

    job = load_job(options.job)
    assert job.store is not None  # load_job sets it
    store = RunStore(job.store)
    shown = masked(job.store)
    with TerminalProgress() as progress:
        problem = prepare(job, progress)
        rho = None
        if isinstance(problem, ModelProblem) and problem.job.workers.precision != "float32":
            rho = precision_agrees(problem, progress)
        with problem:
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
        "comparison": comparison(results),
        "workers_replaced": dict(problem.events),
        "precision_agrees": rho,
    }

    def text() -> None:
        for name, fitness in points.items():
            print(f"{name}: {job.fitness} {fitness:.5g}")
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
        if rho is not None:
            print(f"rank correlation with float32 over 64 profiles: {rho:.4f}")
        if problem.events:
            print(
                "workers replaced: "
                + ", ".join(f"{count} {what}" for what, count in problem.events.items())
            )
        store_option = "" if job.store == _default_store() else f" --store {shlex.quote(shown)}"
        best = min(rows, key=lambda row: row["best"])["run"]
        verb, rest = ("export", " -o out/") if isinstance(job, Job) else ("show", "")
        print(f"runs are in {shown}; {verb} the best one with")
        print(f"  apportion {verb} {best}{rest}{store_option}")

    show(options, content, text)


def _runs(options: argparse.Namespace) -> None:
    store = _open_store(options)
    rows = [run.describe() for run in store.runs()]
    columns = ("run", "job", "algorithm", "seed", "state", "trials", "scored", "best", "seconds")
    show(options, rows, lambda: table(columns, rows))


def _compare(options: argparse.Namespace) -> None:
    from apportion.search.report.league import comparison, standings
    from apportion.search.runs.loop import result_of

    store = _open_store(options)
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
    rows, tests = standings(results), comparison(results)

    def text() -> None:
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


def _show(options: argparse.Namespace) -> None:
    from apportion.search.report.league import describe_pick

    with TerminalProgress() as progress:
        problem, result = _load_run(options, progress)
    with problem:
        content = describe_pick(result, problem)

    def text() -> None:
        for key in (
            "run",
            "state",
            "evaluations",
            "fitness",
            "best_fitness",
            "found_after",
            "additive_error",
        ):
            print(f"{key.replace('_', ' ')}: {cell(content[key])}")
        for metric, ratio in content["costs"].items():
            budget = content["budgets"].get(metric)
            print(f"{metric}: {ratio:.4f} of dense" + (f" (budget {budget:g})" if budget else ""))
        table(("layer", "level"), [{"layer": k, "level": v} for k, v in content["profile"].items()])

    show(options, content, text)


def _schema(_options: argparse.Namespace) -> None:
    from apportion.search.jobs.job_file import json_schema

    print(json.dumps(json_schema(), indent=1))


def _load_run(options: argparse.Namespace, progress: TerminalProgress) -> tuple[Any, Any]:
    from apportion.search.jobs.job_file import restore_job
    from apportion.search.runs.loop import result_of
    from apportion.search.runs.pipeline import pick, prepare

    store = _open_store(options)
    run = store.run(options.run_id)
    problem = prepare(restore_job(store.job(run.job)), progress)
    return problem, pick(result_of(run, store.trials(run.id)), problem, store, progress)


def _open_store(options: argparse.Namespace) -> RunStore:
    url = _store_url(options)
    if url is None:
        raise StoreError(
            _default_store(),
            "no such file; `apportion search` makes it beside the job file, name it with --store",
        )
    return RunStore(url, reading=True)


def _store_url(options: argparse.Namespace) -> str | None:
    """The run store that is asked for; None where none is, and there is none in the current
    folder."""
    url = options.store or os.environ.get("APPORTION_STORE")
    if url is None:
        return _default_store() if Path("apportion.sqlite").is_file() else None
    file = sqlite_file(url)
    if file is not None and not file.is_file():
        raise StoreError(
            url,
            "no such file; `apportion search` makes it beside the job file, name it with --store",
        )
    return str(url)


def _default_store() -> str:
    return sqlite_url("apportion.sqlite")


if __name__ == "__main__":
    sys.exit(main())
