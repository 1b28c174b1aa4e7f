"""What filter levels save of a whole model's time: dense against the shapes that are left when
every layer but the last loses the same share of its filters, alternating in one process, medians.
Random weights: they cost what others cost.

    python benchmarks/filters.py [--models torchvision:mobilenet_v2 ...] [--share 0.5] [--batch 4]
        [--threads 1] [--rounds 15]
"""

from __future__ import annotations

import argparse
import copy
import statistics

import torch
from exactobs import seconds
from torch import nn

from apportion.compressors.kinds.naming import matrices
from apportion.evaluators.costs.runtimes import open_runtime
from apportion.evaluators.models.build import build_model
from apportion.evaluators.rewriting.reduced import reduce_layers


def without_filters(model: nn.Module, share: float) -> tuple[nn.Module, list[str]]:
    """A copy whose layers but the last have `share` of their filters, the smallest ones, at zero;
    and those layers."""
    made = copy.deepcopy(model)
    names = list(matrices(made))[:-1]
    for name in names:
        weight = made.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        smallest = weight.detach().flatten(1).norm(dim=1).argsort()[: int(share * len(weight))]
        weight.data[smallest] = 0
    return made, names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [
        "cifar_resnet20",
        "torchvision:resnet18",
        "torchvision:resnet50",
        "torchvision:mobilenet_v2",
    ]
    parser.add_argument("--models", nargs="+", default=every)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"without {options.share:.0%} of the filters, batch {options.batch}, {options.threads} "
        "threads; medians in ms"
    )
    for name in options.models:
        model = build_model(name)
        size = 32 if name.startswith("cifar") else 224
        x = torch.randn(options.batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        pruned, names = without_filters(model, options.share)
        small = copy.deepcopy(pruned)
        reduce_layers(small, names)
        values = [sum(p.numel() for p in each.parameters()) for each in (model, small)]
        for kind in ("torch", "onnxruntime"):
            runtime = open_runtime(kind, options.threads)
            runs = [
                runtime.prepare(model, x, {}, [], False),
                runtime.prepare(pruned, x, {}, names, False),
            ]
            times: list[list[float]] = [[], []]
            for _ in range(options.rounds):
                for run, own in zip(runs, times, strict=True):
                    own.append(seconds(run, "cpu"))
            dense, left = (
                1e3 * statistics.median(own[1:]) for own in times
            )  # the first one warms up
            ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
            print(
                f"{name:26} {values[1] / values[0]:5.0%} of the weights  {kind:12} {dense:7.2f} "
                f"{left:7.2f} {ratio:5.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
