"""What a GPU brings: a layer database built, and candidates scored, on the CPU and on CUDA, in one
process, alternating, random weights and images (speed does not depend on them).

    python benchmarks/gpu.py [--models resnet18 resnet50 vit_b_16] [--images 256] [--rounds 3]
        [--threads 8] [--levels unstr-0.50 2:4 w4]

Of the scorer: float32 on the CPU, the same on CUDA one by one and stacked (as many candidates at
once as `StitchedScorer` tries), and bf16; medians of the rounds, seconds per candidate. `agree`:
the largest relative difference of CUDA's float32 scores from the CPU's. Of the build: the layers
named by --layers, at --levels."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision

from apportion.compressors.calibration import over
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.kinds.uses import Found
from apportion.compressors.levels import expand_levels
from apportion.db.layers.build import build_database
from apportion.db.layers.database import LayerDatabase
from apportion.db.layers.executor import LocalExecutor
from apportion.evaluators.data.splits import TensorSplit
from apportion.evaluators.scoring import stacked
from apportion.evaluators.scoring.stitched import StitchedScorer
from apportion.evaluators.workloads.workload import Workload


def seconds(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def database(
    workload: Workload, found: Found, levels: list[str], folder: str, gpus: float
) -> LayerDatabase:
    return build_database(
        Path(folder) / f"{gpus}-{len(levels)}-{len(found.layers)}",
        workload.model,
        found,
        workload.unpadded_pass(lambda: workload.calibration.batches(workload.batch_size)),
        expand_levels(["dense", *levels]),
        model_fingerprint="benchmark",
        calibration_fingerprint="benchmark",
        executor=lambda: LocalExecutor(gpus),
        device="cuda" if gpus else "cpu",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "vit_b_16"])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--levels", nargs="+", default=["unstr-0.50", "2:4", "w4"])
    parser.add_argument("--layers", type=int, default=2, help="built at --levels, from the middle")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{torch.cuda.get_device_name()}, {options.threads} threads, torch {torch.__version__}")
    for name in options.models:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name).eval()
        images = torch.randn(options.images, 3, 224, 224)
        data = TensorSplit(images, torch.randint(0, 1000, (options.images,)))
        workload = Workload(model, data, data, data, batch_size=64)
        found = find_layers(model, over(images[:2]))
        with tempfile.TemporaryDirectory() as folder:
            build(name, workload, found, options, folder)
            score(name, workload, database(workload, found, ["mag:2:4"], folder, 1), options)


def build(
    name: str, workload: Workload, found: Found, options: argparse.Namespace, folder: str
) -> None:
    start = len(found.layers) // 2
    some = replace(found, layers=found.layers[start : start + options.layers])
    columns = [layer.columns for layer in some.layers]
    levels = options.levels
    times = [seconds(partial(database, workload, some, levels, folder, g)) for g in (1, 0)]
    print(
        f"{name}: build of {len(columns)} layers of {columns} columns at {' '.join(levels)}: CPU "
        f"{times[1]:.2f} s, CUDA {times[0]:.2f} s, {times[1] / times[0]:.1f}x",
        flush=True,
    )


def score(name: str, workload: Workload, made: LayerDatabase, options: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    asked = [
        (tuple(int(rng.integers(len(own))) for own in made.levels().values()), 1.0)
        for _ in range(options.candidates)
    ]
    scorers = {"CPU": StitchedScorer(workload, made, "kl", "running")}
    for what, width, precision in (
        ("CUDA", 1, "float32"),
        ("stacked", stacked.WIDTH, "float32"),
        ("bf16", 1, "bf16"),
    ):
        scorers[what] = scorer = StitchedScorer(
            workload, made, "kl", "running", device="cuda", precision=precision
        )
        chosen = scorer.width
        if not any(record.place for record in made.layers.values()):
            scorer.width = width
        print(f"  {what}: would choose {chosen} at once", flush=True)
    times: dict[str, list[float]] = {what: [] for what in scorers}
    scores: dict[str, list[float]] = {}
    for turn in range(options.rounds):
        for what, scorer in scorers.items():
            if what == "CPU" and turn:
                continue  # minutes
            scorer._sums.clear()
            scorer._prefixes.forget()
            few = asked[:2] if what == "CPU" else asked
            start = time.perf_counter()
            scores[what] = scorer.score_many(few)  # numbers, so that the GPU is done
            times[what].append((time.perf_counter() - start) / len(few))
    first = scores["CPU"]
    agree = max(abs(a - b) / b for a, b in zip(scores["CUDA"], first, strict=False))
    cells = [f"{what} {statistics.median(own):.4f}" for what, own in times.items()]
    ratio = statistics.median(times["CPU"]) / statistics.median(times["CUDA"])
    print(
        f"{name}: s per candidate: {', '.join(cells)}; CPU / CUDA {ratio:.1f}x; agree {agree:.1e}"
    )


if __name__ == "__main__":
    main()
