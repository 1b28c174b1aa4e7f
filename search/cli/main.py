"""The command line: arguments and printing only."""

from __future__ import annotations

import argparse
import importlib.metadata
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from apportion.search.cli import evaluators, export, prune, recipe, service, web
from apportion.search.cli.failures import debug_option, tell
from apportion.search.cli.jobs import build_command, schema_command
from apportion.search.cli.runs import (
    compare_command,
    load_run,
    runs_command,
    show_command,
    store_url,
)
from apportion.search.cli.search import search_command
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
        build_command,
        "Build a job's layer database, or go on with it.",
        "apportion build job.yaml",
    )
    search = command(
        "search",
        search_command,
        "Run every algorithm x seed of a job, at each point of a front, building what is missing; "
        "goes on where it was stopped.",
        "apportion search job.yaml --json > league.json",
    )
    for sub in (build, search):
        sub.add_argument("job", type=Path, help="the job file (docs/JOBS.md)")
    search.add_argument(
        "--format",
        nargs="+",
        default=[],
        metavar="FORMAT",
        help="formats that you will export: what one of them cannot hold is refused at the start",
    )
    runs = command(
        "runs",
        runs_command,
        "List the runs in a run store.",
        "apportion runs --store sqlite:///apportion.sqlite",
    )
    compare = command(
        "compare",
        compare_command,
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
    shown = command(
        "show", show_command, "Show a run's final profile.", "apportion show spdy-s0-1a2b3c4d"
    )
    exporting = export.add_commands(command, load_run)
    for sub in (shown, exporting):
        sub.add_argument("run_id", metavar="RUN", help="a run's id, as `apportion runs` lists it")
    for sub in (runs, compare, shown, exporting):
        sub.add_argument(
            "--store",
            help="URL of the run store; default: APPORTION_STORE, or apportion.sqlite in the "
            "current folder",
        )
    prune.add_command(command)
    recipe.add_command(command)
    evaluators.add_commands(command, commands)
    service.add_commands(command)
    web.add_commands(command, store_url)
    command(
        "schema",
        schema_command,
        "Print the job file's JSON Schema.",
        "apportion schema > job.schema.json",
    )
    for sub in (build, search, runs, compare, shown):
        sub.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
