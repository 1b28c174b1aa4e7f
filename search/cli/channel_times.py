"""`latency measure` and `latency check` for channel levels: arguments and printing only."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from apportion.db.files import write_atomically, write_text
from apportion.search.cli.printing import show, table

_BLOCKS = {"onnxruntime": {"AVX-512": 16, "AVX2": 8}}
"""Channels that a runtime's kernels take at once."""


def measured(workload: Any, channels: Any, runtime: Any, example: Any, progress: Any) -> Any:
    """The times of layers over the channels on both sides."""
    from apportion.evaluators.costs.channels.measure import measure_channels
    from apportion.evaluators.rewriting.processor import instructions

    blocks = _BLOCKS.get(runtime.name, {})
    step = next((n for name, n in blocks.items() if name in instructions()), 1)
    return measure_channels(
        workload.model,
        channels.content.found,
        channels.content.grouped.groups,
        example,
        runtime,
        step=step,
        progress=progress,
    )


def write_measured(options: argparse.Namespace, latency: Any, levels: int) -> None:
    from apportion.evaluators.costs.channels.files import channels_csv

    text = channels_csv(latency)
    write_atomically(options.out, lambda path: write_text(path, text))
    sizes = {name: grid.seconds.size for name, grid in latency.grids.items()}
    content = {
        "table": str(options.out),
        "layers": len(sizes),
        "times": sum(sizes.values()),
        "decisions": levels,
    }

    def shown() -> None:
        print(f"{content['times']} times of {content['layers']} layers at numbers of channels")
        print(f"wrote {options.out}")

    show(options, content, shown)


def check(
    options: argparse.Namespace,
    workload: Any,
    channels: Any,
    runtime: Any,
    example: Any,
    progress: Any,
) -> None:
    """Smaller models at random profiles, timed beside what a table predicts."""
    import numpy as np
    from scipy.stats import spearmanr

    from apportion.compressors.levels import parse_level
    from apportion.db.channels.database import of_layers
    from apportion.evaluators.costs.channels.files import read_channels
    from apportion.evaluators.costs.runtimes import time_run
    from apportion.evaluators.rewriting.smaller import Smaller

    content = channels.content
    times = read_channels(Path(options.table), content.found, content.grouped.groups)
    smaller, rng, rows = Smaller(workload.model, channels), np.random.default_rng(options.seed), []
    for number in range(options.profiles):  # from no channels gone to any of all groups
        share, profile = number / (options.profiles - 1), {}
        for name, levels in channels.levels().items():
            floats = [level for level in map(parse_level, levels) if of_layers(level).is_dense]
            pick = int(rng.integers(len(floats))) if rng.random() < share else 0
            profile[name] = floats[pick]
        sizes = channels.sizes(profile)
        run = runtime.prepare(smaller(profile), example, {}, [], False)
        predicted, seconds = times.seconds(sizes), time_run(run).seconds
        rows.append(
            {
                "channels": sum(sizes.values()),
                "predicted_ms": 1e3 * predicted,
                "measured_ms": 1e3 * seconds,
                "ratio": seconds / predicted,
            }
        )
        progress("time profiles", number + 1, options.profiles)
    both = ([row[key] for row in rows] for key in ("predicted_ms", "measured_ms"))
    rho = float(spearmanr(*both).statistic)

    def shown() -> None:
        table(("channels", "predicted_ms", "measured_ms", "ratio"), rows)
        print(f"rank correlation of predicted and measured: {rho:.3f}")

    show(options, {"profiles": rows, "rank_correlation": rho}, shown)
