"""Latency of narrowed networks on one thread of ONNX Runtime: dense, ours, and Torch-Pruning's (L2,
local) of as many multiply-accumulates or fewer, alternating in one process, ratios of medians; and
what tables over (inputs kept, outputs kept) of each layer say of them.

    python benchmarks/structured_latency.py --data PATH/TO/DATA [--models cifar_resnet20
        torchvision:resnet18] [--speedup 2] [--batches 1 32] [--multiples 4 16] [--step 16]
        (pip install torch-pruning)

Ours is `apportion.narrow` with a budget of multiply-accumulates, sizes in several `--multiples`.
The CIFAR network has its own weights and images; others have random ones: shapes cost what shapes
cost. ONNX Runtime's convolutions take `--step` channels at once, 16 with AVX-512: 20 take as long
as 32. Numbers that are no multiples of 4, as Torch-Pruning leaves them, it runs without those
kernels, hardly faster than dense, and slower than tables of multiples say. Predictions are held
against uniform networks at 0.4 and 0.6, too, in multiples of 4, which no table was fitted to."""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from structured import Data, resnet20
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import apportion
from apportion.compressors.calibration import over
from apportion.compressors.groups.find import ChannelGroup, find_groups
from apportion.compressors.kinds.find import find_layers
from apportion.evaluators.costs.channels.measure import measure_channels
from apportion.evaluators.costs.runtimes import OnnxRuntime
from apportion.evaluators.models.build import build_model
from apportion.evaluators.rewriting.narrow import narrowed
from apportion.evaluators.tasks.image_classification import ImageClassification

_WARM, _COUNTED = 2, 5


def macs(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x[:1])
    return int(counter.get_total_flops()) // 2


def torch_pruned(dense: nn.Module, x: Tensor, limit: int) -> nn.Module:
    """By L2, the same share of every layer: the largest with at most so many
    multiply-accumulates."""
    import torch_pruning as tp

    last = [m for m in dense.modules() if isinstance(m, nn.Linear)][-1]
    best, low, high = None, 0.0, 0.95
    for _ in range(8):
        model = copy.deepcopy(dense).eval()
        ignored = [m for n, m in model.named_modules() if n == _name(dense, last)]
        ratio = (low + high) / 2
        importance = tp.importance.MagnitudeImportance(p=2)
        tp.pruner.BasePruner(
            model, x[:1], importance=importance, pruning_ratio=ratio, ignored_layers=ignored
        ).step()
        if macs(model, x) <= limit:
            best, high = model, ratio
        else:
            low = ratio
    assert best is not None
    return best.eval()


def _name(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, own in model.named_modules() if own is module)


def sizes_of(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, int]:
    """Channels of each group, as the first layer that makes them has them."""
    found = {}
    for group in groups:
        weight = model.get_submodule(group.name).weight
        assert isinstance(weight, Tensor)
        found[group.name] = len(weight)
    return found


def alternating(runs: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median seconds of each, in turn for so long: some calls, the first of which warm the caches
    that the others' have used."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 15:
        for name, run in runs.items():
            for i in range(_WARM + _COUNTED):
                start = time.perf_counter()
                run()
                if i >= _WARM:
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(own) for name, own in times.items()}


def quick(run: Callable[[], object]) -> float:
    """The median of a few runs: a table has hundreds."""
    run()
    times: list[float] = []
    while len(times) < 7 or sum(times) < 0.05:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(name: str, options: Any) -> None:
    batches = max(options.batches)
    if name == "cifar_resnet20":
        data = Data(options.data)
        dense = resnet20(options.data / "models/resnet20_cifar10.safetensors")
        images, labels = data.calibration[:256], data.calibration_labels[:256]
    else:
        torch.manual_seed(0)
        dense = build_model(name)
        images, labels = torch.randn(max(batches, 32), 3, 224, 224), torch.zeros(32).long()
    calibration = list(zip(images.split(32), labels.split(32), strict=False))
    first = images[:2]
    found = find_layers(dense, over(first))
    groups = find_groups(dense, found.layers, over(first), first[:1]).groups
    sides: dict[str, nn.Module] = {"dense": dense}
    for multiple in options.multiples:
        start = time.perf_counter()
        made = apportion.narrow(
            dense, task=ImageClassification(), calibration=calibration,
            budgets={"flops": f"{options.speedup:g}x"}, multiple=multiple,
        )  # fmt: skip
        sides[f"ours, {multiple}"] = made.model
        seconds = time.perf_counter() - start
        print(f"{name}: in multiples of {multiple} narrowed in {seconds:.0f} s")
    whole = macs(dense, images)
    sides["torch-pruning"] = torch_pruned(dense, images, int(whole / options.speedup))
    for share in (0.6, 0.4):
        stays = {g.name: np.arange(g.size) < 4 * round(share * g.size / 4) for g in groups}
        sides[f"uniform {share}"] = narrowed(dense, groups, stays)
    runtime = OnnxRuntime(1)
    for batch in options.batches:
        x = images[:batch]
        start = time.perf_counter()
        latency = measure_channels(
            dense, found, groups, x, runtime, options.shares, options.step, quick
        )
        seconds = time.perf_counter() - start
        runs = {side: runtime.prepare(model, x, {}, [], False) for side, model in sides.items()}
        times = alternating(runs, options.seconds)
        errors = []
        for side, model in sides.items():
            told = latency.seconds(sizes_of(model, groups))
            errors.append(abs(told / times[side] - 1))
            print(
                f"{name:22} batch {batch:<3} {side:14} {macs(model, images) / 1e6:8.1f} million  "
                f"measured {1e3 * times[side]:8.3f} ms, {times['dense'] / times[side]:.2f}x  "
                f"predicted {1e3 * told:8.3f} ms ({told / times[side] - 1:+.0%})",
                flush=True,
            )
        cells = sum(grid.seconds.size for grid in latency.grids.values())
        middle, most = statistics.median(errors[1:]), max(errors[1:])
        print(
            f"{name:22} batch {batch:<3} table of {cells} in {seconds:.0f} s; error "
            f"{middle:.0%} in the median, {most:.0%} at most"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["cifar_resnet20", "torchvision:resnet18"])
    parser.add_argument("--speedup", type=float, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1])
    parser.add_argument("--multiples", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--step", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        measure(name, options)


if __name__ == "__main__":
    main()
