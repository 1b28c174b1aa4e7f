"""Channel groups of torchvision's models: half of every group's channels taken out, by apportion
and by Torch-Pruning: whether the network runs, whether ours computes what the dense one computes
when nobody reads these channels, the share of parameters that is left, and seconds.

    python benchmarks/groups.py [--models resnet18 ...] [--skip vit_h_14 ...] [--seconds 120]
        (pip install torch-pruning)

Random weights; images of 64 (224 for transformers, 128 for Inception). Torch-Pruning: magnitude,
half of each layer, but for the layers that give the classes, which it is told to leave."""

from __future__ import annotations

import argparse
import copy
import signal
import time
import warnings
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from apportion.compressors.calibration import over
from apportion.compressors.groups.find import find_groups
from apportion.compressors.kinds.find import find_layers
from apportion.evaluators.rewriting.masked import masked, working
from apportion.evaluators.rewriting.narrow import narrowed

_FIXED = ("vit", "maxvit", "swin")
"""They take images of this size alone, or mean it."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = torchvision.models.list_models(torchvision.models)
    parser.add_argument("--models", nargs="+", default=every)
    parser.add_argument("--skip", nargs="*", default=[])
    parser.add_argument("--seconds", type=int, default=120, help="of each side, at most")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, too_long)
    warnings.simplefilter("ignore")
    counts = {"ours": 0, "Torch-Pruning": 0}
    names = [name for name in options.models if name not in options.skip]
    for name in names:
        torch.manual_seed(0)
        more = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, **more).eval()
        side = 224 if name.startswith(_FIXED) else 128 if name == "inception_v3" else 64
        x = torch.randn(1, 3, side, side)
        for who, run in (("ours", ours), ("Torch-Pruning", theirs)):
            start = time.perf_counter()
            signal.alarm(options.seconds)
            try:
                text = run(copy.deepcopy(model), x)
                counts[who] += 1
            except (Exception, TooLong) as error:  # whatever it raises is the result
                text = f"FAILED: {type(error).__name__} {str(error).splitlines()[:1]}"
            signal.alarm(0)
            print(f"{name:22} {who:14} {text}  {time.perf_counter() - start:.1f} s", flush=True)
    print(f"of {len(names)}: " + ", ".join(f"{who} {n}" for who, n in counts.items()))


class TooLong(BaseException):
    """No Exception, which code that is tried would catch."""


def too_long(*_: object) -> None:
    raise TooLong("stopped")


def ours(model: nn.Module, x: Tensor) -> str:
    for module in model.modules():  # some heads begin with zeros: nothing could be compared
        if isinstance(module, nn.Linear) and not bool(module.weight.any()):
            nn.init.normal_(module.weight, std=0.02)
    layers = find_layers(model, over(x)).layers
    found = find_groups(model, layers, over(x), x)
    groups = working(model, found, layers, over(x), x).groups
    rng, kept = np.random.default_rng(0), {}
    for group in groups:
        kept[group.name] = np.ones(group.size, bool)
        kept[group.name][rng.permutation(group.size)[: group.size // 2]] = False
    small = narrowed(model, groups, kept)
    with torch.no_grad():
        got, expected = small(x), masked(model, layers, groups, kept)(x)
    error = float((got - expected).abs().max() / expected.abs().max())
    if not error <= 1e-4:
        raise ValueError(f"it computes something else, by {error:.1e}")
    return f"{len(groups):4} groups, {share(small, model)} of the parameters"


def theirs(model: nn.Module, x: Tensor) -> str:
    import torch_pruning as tp

    before = copy.deepcopy(model)
    classes = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    last: list[Any] = [*classes]
    last += [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == 1000]
    pruner = tp.pruner.BasePruner(
        model,
        x,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=last,
    )
    pruner.step()
    with torch.no_grad():
        out = model(x)
    if out.shape != (1, 1000):
        raise ValueError(f"it gives {tuple(out.shape)}")
    return f"{share(model, before)} of the parameters"


def share(small: nn.Module, model: nn.Module) -> str:
    sizes = [sum(p.numel() for p in m.parameters()) for m in (small, model)]
    return f"{sizes[0] / sizes[1]:.3f}"


if __name__ == "__main__":
    main()
