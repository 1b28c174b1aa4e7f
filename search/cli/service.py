"""The commands of the service: submit, status, logs, cancel, resume, fetch. Arguments and printing
only."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apportion.compressors.errors import ConfigurationError
from apportion.search.cli.printing import show, table


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    submit = command(
        "submit",
        _submit,
        "Check a job, upload what it needs, and run it on a Ray cluster; prints the job's id.",
        "apportion submit job.yaml --address http://head:8265",
    )
    submit.add_argument("job", type=Path, help="the job file (docs/JOBS.md)")
    submit.add_argument("--storage", help="folder of the head node, or URL; default: ~/apportion")
    submit.add_argument(
        "--priority",
        type=_positive,
        default=1.0,
        help="share of a busy cluster, beside the others' (default 1)",
    )
    submit.add_argument(
        "--format",
        nargs="+",
        default=["safetensors"],
        metavar="FORMAT",
        help="of the exported model",
    )
    pack = command(
        "pack",
        _pack,
        "Check a job and put what it needs into a folder, for a KubeRay RayJob.",
        "apportion pack job.yaml -o /mnt/apportion/packages/resnet20",
    )
    pack.add_argument("job", type=Path, help="the job file (docs/JOBS.md)")
    pack.add_argument("-o", "--out", type=Path, required=True, help="folder to make")
    status = command(
        "status", _status, "Show all jobs, or one.", "apportion status resnet20-1a2b3c4d"
    )
    status.add_argument("job", nargs="?", metavar="JOB")
    logs = command("logs", _logs, "Print a job's log.", "apportion logs resnet20-1a2b3c4d -f")
    logs.add_argument("-f", "--follow", action="store_true", help="until the job ends")
    cancel = command(
        "cancel",
        _cancel,
        "Stop a job; what it found is kept.",
        "apportion cancel resnet20-1a2b3c4d",
    )
    resume = command(
        "resume",
        _resume,
        "Go on with a job that was stopped.",
        "apportion resume resnet20-1a2b3c4d",
    )
    fetch = command(
        "fetch",
        _fetch,
        "Copy a finished job's results here.",
        "apportion fetch resnet20-1a2b3c4d -o out/",
    )
    fetch.add_argument("-o", "--out", type=Path, required=True, help="folder to write to")
    for sub in (logs, cancel, resume, fetch):
        sub.add_argument("job", metavar="JOB")
    for sub in (submit, status, logs, cancel, resume, fetch):
        sub.add_argument(
            "--address",
            help="the cluster's dashboard, http://HEAD:8265; default: RAY_ADDRESS, or this machine",
        )
    for sub in (status, resume, fetch):
        sub.add_argument(
            "--storage",
            help="where jobs lie that a head which was started anew has forgotten; default: "
            "~/apportion",
        )
    for sub in (submit, status, fetch):
        sub.add_argument("--json", action="store_true", help="print JSON")


def _service(options: argparse.Namespace) -> Any:
    from apportion.search.service.client import Service

    return Service(options.address, getattr(options, "storage", None))


def _submit(options: argparse.Namespace) -> None:
    service = _service(options)
    job, notes = service.submit(
        options.job, storage=options.storage, priority=options.priority, formats=options.format
    )
    for note in notes:
        print(note, file=sys.stderr)
    show(options, {"job": job, "notes": list(notes)}, lambda: print(job))


def _pack(options: argparse.Namespace) -> None:
    from apportion.search.service.package import pack

    if options.out.exists():
        raise ConfigurationError(f"{options.out} exists already; a package is a folder of its own")
    try:
        packed = pack(options.job, options.out, upload=True)
    except BaseException:
        shutil.rmtree(options.out, ignore_errors=True)
        raise
    for note in packed.notes:
        print(note, file=sys.stderr)
    print(f"wrote {options.out}")


def _status(options: argparse.Namespace) -> None:
    service = _service(options)
    if options.job:
        state = service.state(options.job)
        show(options, state.to_json(), lambda: _print_job(state))
        return
    states = service.states()
    rows = [_row(state) for state in states]
    columns = ("job", "file", "state", "step", "done", "best", "per_second", "left", "workers")
    show(
        options,
        [state.to_json() for state in states],
        lambda: table(columns, rows) if rows else print("no jobs"),
    )


def _logs(options: argparse.Namespace) -> None:
    for line in _service(options).logs(options.job, options.follow):
        print(line, flush=True)


def _cancel(options: argparse.Namespace) -> None:
    _service(options).cancel(options.job)


def _resume(options: argparse.Namespace) -> None:
    _service(options).resume(options.job)


def _fetch(options: argparse.Namespace) -> None:
    files = _service(options).fetch(options.job, options.out)
    show(
        options,
        [str(path) for path in files],
        lambda: print("\n".join(f"wrote {path}" for path in files)),
    )


def _row(state: Any) -> dict[str, Any]:
    asked, total = (sum(run[key] for run in state.runs) for key in ("asked", "evaluations"))
    return {
        "job": state.job,
        "file": state.file,
        "state": state.state,
        "step": state.step[0].split(":")[0] if state.step and state.ended is None else None,
        "done": f"{asked:.0f}/{total:.0f}" if total else None,
        "best": state.best["fitness"] if state.best else None,
        "per_second": state.rate,
        "left": _span(state.left),
        "workers": state.workers.get("there") if state.ended is None else None,
    }


def _print_job(state: Any) -> None:
    print(f"job: {state.job} ({state.file}), attempt {state.attempt}")
    print(
        f"state: {state.state}"
        + (f", {_span(time.time() - state.updated)} ago" if state.ended is None else "")
    )
    if state.error:
        print(f"error: {state.error}")
    if state.step and state.ended is None:
        print(f"step: {state.step[0]}  {state.step[1]}/{state.step[2]}")
    if state.started:
        print(f"took: {_span((state.ended or time.time()) - state.started)}")
    if state.rate:
        print(
            f"evaluations a second: {state.rate:.3g}"
            + (f", left: {_span(state.left)}" if state.left is not None else "")
        )
    if state.workers and state.ended is None:
        replaced = ", ".join(f"{count} {what}" for what, count in state.workers["replaced"].items())
        print(
            f"workers: {state.workers['there']}" + (f" (replaced: {replaced})" if replaced else "")
        )
    if state.best:
        print(f"best: {state.best['fitness']:.5g} by {state.best['run']}")
    if state.store:
        print(f"run store: {state.store}")
    if state.runs:
        table(("run", "state", "asked", "evaluations", "best"), state.runs)


def _span(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a number above 0 is needed; got {text!r}")
    return value
