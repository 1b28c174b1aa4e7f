"""The command that prunes in steps: prune. Arguments and printing only."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from apportion.search.cli.printing import show, table
from apportion.search.cli.progress import TerminalProgress


def add_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    prune = command(
        "prune",
        _prune,
        "Bring a job's model to its budgets in the steps of its schedule (one-shot, agp, linear, "
        "lottery, netadapt), each built, searched, exported and trained; goes on where it was "
        "stopped.",
        "apportion prune job.yaml -o out/",
    )
    prune.add_argument("job", type=Path, help="the job file (docs/JOBS.md, schedule)")
    prune.add_argument("-o", "--out", type=Path, required=True, help="folder to write to")
    prune.add_argument(
        "--format",
        nargs="+",
        default=["safetensors"],
        metavar="FORMAT",
        help="of the final model: safetensors (always), compressed, torch, onnx, profile",
    )
    prune.add_argument("--json", action="store_true", help="print JSON")


def _prune(options: argparse.Namespace) -> None:
    from apportion.evaluators.tasks.task import Metric
    from apportion.search.jobs.job_file import load_model_job
    from apportion.search.schedules.prune import prune

    job = load_model_job(options.job)
    with TerminalProgress() as progress:
        made = prune(job, options.out, progress, options.format)

    def text() -> None:
        metric = Metric(**made.content["steps"][-1]["metric"])
        head = metric.title
        rows = [
            {
                "step": step["step"],
                **{f"{name}, of dense": share for name, share in step["of_dense"].items()},
                head: metric.number(list(step[metric.name].values())[-1]),
                "on": f"{step['measured_on']} samples",
            }
            for step in made.content["steps"]
        ]
        table(list(rows[-1]), rows)
        for path in made.files.values():
            print(f"wrote {path}")

    show(options, made.content, text)
