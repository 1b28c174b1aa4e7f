"""The commands that write models: export, import. Arguments and printing only."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apportion.compressors.errors import ConfigurationError
from apportion.search.cli.printing import show, table
from apportion.search.cli.progress import TerminalProgress

_STEPS = ("lintune", "adaprune", "finetune")


def add_commands(
    command: Callable[..., argparse.ArgumentParser],
    load_run: Callable[[argparse.Namespace, TerminalProgress], tuple[Any, Any]],
) -> argparse.ArgumentParser:
    """Gives the parser of `export`; `load_run` gives the problem and the result of the run that
    options name."""
    export = command(
        "export",
        lambda options: _export(options, load_run),
        "Write a run's final profile and the stitched, corrected model, each file loaded again and "
        "compared.",
        "apportion export spdy-s0-1a2b3c4d -o out/ --format compressed onnx",
    )
    imported = command(
        "import",
        _import,
        "Check a profile against a job's layer database, score it, and export it like a found one.",
        "apportion import profile.yaml job.yaml -o out/",
    )
    imported.add_argument(
        "profile", type=Path, help=".json, .yaml, .csv, or .txt as SPDY writes it (docs/JOBS.md)"
    )
    imported.add_argument(
        "job", type=Path, help="the job file: model, data, database, budgets, fitness"
    )
    for sub in (export, imported):
        sub.add_argument("-o", "--out", type=Path, required=True, help="folder to write to")
        sub.add_argument(
            "--format",
            nargs="+",
            default=["safetensors"],
            metavar="FORMAT",
            help="safetensors (default), compressed, torch, onnx, huggingface, compressed-tensors, "
            "profile",
        )
        sub.add_argument(
            "--recover",
            nargs="+",
            choices=_STEPS,
            help="training after the corrections, with the job's settings or the defaults; "
            "default: what the job says",
        )
        sub.add_argument("--json", action="store_true", help="print JSON")
    return export


def _export(
    options: argparse.Namespace,
    load_run: Callable[[argparse.Namespace, TerminalProgress], tuple[Any, Any]],
) -> None:
    from apportion.search.export.exporting import check_formats, export
    from apportion.search.runs.pipeline import ModelProblem

    check_formats(options.format)
    with TerminalProgress() as progress:
        problem, result = load_run(options, progress)
        if not isinstance(problem, ModelProblem):
            raise ConfigurationError(
                f"run {options.run_id!r} searched on a table: there is no model to export; see "
                "`apportion show`"
            )
        with problem:
            recovery = _recovery(options, problem.job)
            exported = export(result, problem, options.out, progress, options.format, recovery)
    _print(options, exported)


def _import(options: argparse.Namespace) -> None:
    from apportion.db.layers.profile_files import read_profile
    from apportion.search.export.exporting import check_formats, export, score_profile
    from apportion.search.jobs.job_file import load_model_job
    from apportion.search.runs.pipeline import prepare

    check_formats(options.format)
    job = load_model_job(options.job)
    with TerminalProgress() as progress, prepare(job, progress) as problem:
        profile = read_profile(options.profile, problem.levels())
        chosen = score_profile(profile, problem, options.profile.name)
        exported = export(
            chosen, problem, options.out, progress, options.format, _recovery(options, job)
        )
    _print(options, exported)


def _recovery(options: argparse.Namespace, job: Any) -> Any:
    """The steps that are asked for; None for the job's."""
    if options.recover is None:
        return None
    from apportion.evaluators.training.config import RecoveryConfig

    given = job.recovery.model_dump(exclude_none=True)
    return RecoveryConfig.model_validate({step: given.get(step, {}) for step in options.recover})


def _print(options: argparse.Namespace, exported: Any) -> None:
    from apportion.evaluators.tasks.task import Metric

    content = {
        "files": {name: str(path) for name, path in exported.files.items()},
        **exported.content,
    }

    def text() -> None:
        for path in content["files"].values():
            print(f"wrote {path}")
        fitness = content["fitness"]
        print(f"{fitness['name']}: {fitness['value']:.5g} (lower is better)")
        for metric, bound in content["budgets"].items():
            reached = content["costs"][metric]
            print(
                f"{metric}: {reached:.4f} of dense (budget "
                f"{bound:.4f}{'' if reached <= bound + 1e-9 else ', NOT MET'})"
            )
        metric = Metric(**content["metric"])
        shown = f"{metric.name} ({metric.direction})" if metric.direction else metric.name
        for name, value in content[metric.name].items():
            print(f"test {shown}, {name}: {metric.text(value)}")
        if content["exports"]:
            head = f"test {metric.title}"
            rows = [
                {"file": name, **one, head: metric.number(one[metric.name])}
                for name, one in content["exports"].items()
            ]
            table(("file", "bytes", "of_dense", "largest_difference", head, "processor"), rows)

    show(options, content, text)
