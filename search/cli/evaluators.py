"""The commands that measure: sensitivity, latency measure, latency check. Arguments and printing
only."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apportion.db.files import write_atomically, write_text
from apportion.search.cli.failures import debug_option
from apportion.search.cli.printing import show, table
from apportion.search.cli.progress import TerminalProgress

_TOLD = {
    "loss": "rise of the calibration loss (nats)",
    "kl": "KL to the dense model (nats)",
    "fisher": "KL to the dense model to second order (nats)",
    "probe": "KL to the dense model by two evaluations a layer (nats)",
}
"""What a table is of."""
_SHOWN = 8
"""Levels of a layer that the text table shows."""


def add_commands(command: Callable[..., argparse.ArgumentParser], commands: Any) -> None:
    """`command` adds one to `commands`, the parser's own group."""
    sensitivity = command(
        "sensitivity",
        _sensitivity,
        "Measure how much the calibration loss rises when one layer alone is compressed, for every "
        "level; or make the table that the job's `errors` names (kl, fisher, probe).",
        "apportion sensitivity job.yaml -o sensitivity.csv",
    )
    sensitivity.add_argument(
        "-o", "--out", type=Path, help="also write a CSV file with the columns layer, level, error"
    )
    text = "Measure the time of layers on this machine, and check such tables against whole models."
    group = commands.add_parser(
        "latency",
        help=text,
        description=text,
        epilog="example: apportion latency measure job.yaml -o t.csv",
    )
    parts = group.add_subparsers(required=True, metavar="measure|check")
    measure = _part(
        parts,
        "measure",
        _measure,
        "Time every (layer shape, level) in isolation, and write the table that a job's "
        "latency.table names.",
        "apportion latency measure job.yaml --runtime onnxruntime -o times.csv",
    )
    measure.add_argument("-o", "--out", type=Path, required=True, help="CSV file to write")
    check = _part(
        parts,
        "check",
        _check,
        "Time whole stitched models, beside what a table predicts for them.",
        "apportion latency check job.yaml --table times.csv --runtime onnxruntime",
    )
    check.add_argument("--table", type=Path, required=True, help="a latency table")
    check.add_argument(
        "--profiles", type=_at_least(2), default=12, help="profiles to time (default 12)"
    )
    check.add_argument("--seed", type=_at_least(0), default=0, help="of the profiles' choice")
    for sub in (measure, check):
        sub.add_argument("--runtime", default="torch", help="torch (default), cuda or onnxruntime")
        sub.add_argument(
            "--batch", type=_at_least(1), default=1, help="samples at once (default 1)"
        )
        sub.add_argument("--threads", type=_at_least(1), default=1, help="CPU threads (default 1)")
    for sub in (sensitivity, measure, check):
        sub.add_argument("job", type=Path, help="the job file (docs/JOBS.md)")
        sub.add_argument("--json", action="store_true", help="print JSON")


def _at_least(least: int) -> Callable[[str], int]:
    """A whole number, `least` or above."""

    def parse(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"a whole number, {least} or above, is needed; got {text!r}"
            )
        return int(text)

    return parse


def _part(
    parts: Any, name: str, run: Callable[[argparse.Namespace], None], text: str, example: str
) -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = parts.add_parser(
        name, help=text, description=text, epilog=f"example: {example}"
    )
    sub.set_defaults(name=name, run=run, all_or_nothing=True)
    debug_option(sub)
    return sub


def _sensitivity(options: argparse.Namespace) -> None:
    from apportion.db.channels.database import by_decision
    from apportion.search.jobs.job_file import load_model_job
    from apportion.search.runs.building import build
    from apportion.search.runs.tables import make_table
    from apportion.search.runs.workers import Workers

    job = load_model_job(options.job)
    if job.errors == "layer":  # which measures nothing
        job = job.model_copy(update={"errors": "loss"})
    with TerminalProgress() as progress, Workers(job.workers) as workers:
        workload, built = build(job, progress, workers)
        database = by_decision(built)
        rises = make_table(job, workload, database, workers, progress).rows
    levels = database.levels()
    content = {
        layer: dict(zip(names, map(float, row), strict=True))
        for (layer, names), row in zip(levels.items(), rises, strict=True)
    }
    if options.out:
        lines = [
            f"{layer},{level},{rise!r}\n"
            for layer, row in content.items()
            for level, rise in row.items()
        ]
        write_atomically(
            options.out, lambda path: write_text(path, "layer,level,error\n" + "".join(lines))
        )

    def text() -> None:
        longest = max(levels.values(), key=len)
        step = max(1, math.ceil((len(longest) - 1) / _SHOWN))
        chosen = [name for name in longest[::-1][::step][::-1] if name != "dense"]
        worst = sorted(
            content, key=lambda layer: -max(content[layer].get(name, 0.0) for name in chosen)
        )
        rows = [
            {"layer": layer, **{name: content[layer].get(name) for name in chosen}}
            for layer in worst
        ]
        print(
            f"{_TOLD[job.errors]} when one layer alone is at a level; the most sensitive layer "
            "first"
        )
        table(("layer", *chosen), rows)
        if options.out:
            print(f"wrote {options.out}")

    show(options, content, text)


def _measure(options: argparse.Namespace) -> None:
    from apportion.compressors.threads import torch_threads
    from apportion.db.channels.database import ChannelDatabase
    from apportion.evaluators.costs.measure import measure_latency
    from apportion.search.cli import channel_times
    from apportion.search.jobs.job_file import load_model_job
    from apportion.search.runs.building import build

    job = load_model_job(options.job)
    with TerminalProgress() as progress:
        workload, database = build(job, progress)
        with torch_threads(options.threads):
            runtime, example = _runtime(options), _example(workload, options.batch)
            if database.channels is not None:
                channels = ChannelDatabase(database)
                times = channel_times.measured(workload, channels, runtime, example, progress)
            else:
                measured = measure_latency(workload.model, database, example, runtime, progress)
    if database.channels is not None:
        channel_times.write_measured(options, times, len(channels.levels()))
        return
    text_of_table = measured.to_csv()
    write_atomically(options.out, lambda path: write_text(path, text_of_table))
    content = {
        "table": str(options.out),
        **measured.facts,
        "whole_seconds": measured.whole.seconds,
        "layers_alone_seconds": measured.alone,
    }

    def text() -> None:
        rows = [
            {
                "layer": name,
                "level": str(level),
                "ms": 1e3 * timing.seconds,
                "spread": 1e3 * timing.spread,
            }
            for name, row in measured.layers.items()
            for level, timing in row.items()
        ]
        table(("layer", "level", "ms", "spread"), rows)
        for name, value in measured.facts.items():
            print(f"{name}: {value}")
        share = measured.alone / measured.whole.seconds
        print(
            f"the dense layers alone take {share:.0%} of the whole model's "
            f"{1e3 * measured.whole.seconds:.4g} ms"
        )
        if not any(len(row) > 1 for row in measured.layers.values()):
            print(
                f"nothing on {runtime.name} runs a level of this database faster: all cost what "
                "dense costs"
            )
        print(f"wrote {options.out}")

    show(options, content, text)


def _check(options: argparse.Namespace) -> None:
    import numpy as np
    from scipy.stats import spearmanr

    from apportion.compressors.levels import parse_level
    from apportion.compressors.threads import torch_threads
    from apportion.db.channels.database import ChannelDatabase
    from apportion.evaluators.costs.latency_files import read_latency
    from apportion.evaluators.costs.measure import check_latency, sample_profiles
    from apportion.search.cli import channel_times
    from apportion.search.jobs.job_file import load_model_job
    from apportion.search.runs.building import build

    job = load_model_job(options.job)
    times = None if job.database.has_channels else read_latency(options.table)
    with TerminalProgress() as progress:
        workload, database = build(job, progress)
        with torch_threads(options.threads):
            if times is None:
                runtime, example = _runtime(options), _example(workload, options.batch)
                channels = ChannelDatabase(database)
                channel_times.check(options, workload, channels, runtime, example, progress)
                return
            named = {level for row in times.seconds.values() for level in row if not level.is_dense}
            there = {parse_level(name) for names in database.levels().values() for name in names}
            profiles = sample_profiles(
                database,
                sorted(named & there, key=str),
                options.profiles,
                np.random.default_rng(options.seed),
            )
            example = _example(workload, options.batch)
            checks = check_latency(
                workload.model, database, times, example, _runtime(options), profiles, progress
            )
    predicted, measured = [c.predicted for c in checks], [c.measured for c in checks]
    correlation = (
        float(spearmanr(predicted, measured).statistic) if len(set(predicted)) > 1 else None
    )
    rows = [
        {
            "profile": ", ".join(f"{n} x {name}" for name, n in c.levels.items()),
            "predicted_ms": 1e3 * c.predicted,
        }
        | {"measured_ms": 1e3 * c.measured, "ratio": c.measured / c.predicted}
        for c in checks
    ]

    def text() -> None:
        table(("profile", "predicted_ms", "measured_ms", "ratio"), rows)
        if correlation is None:
            print("the table predicts the same time for all profiles: there is no rank correlation")
        else:
            print(f"rank correlation of predicted and measured: {correlation:.3f}")

    show(options, {"profiles": rows, "rank_correlation": correlation}, text)


def _runtime(options: argparse.Namespace) -> Any:
    from apportion.evaluators.costs.runtimes import open_runtime

    return open_runtime(options.runtime, options.threads)


def _example(workload: Any, batch: int) -> Any:
    return workload.task.inputs(next(workload.calibration.batches(batch)))
