"""Several candidates in one pass, their weights stacked (torch.func): for models too small to keep
a GPU busy one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from apportion.evaluators.data import trees
from apportion.evaluators.tasks.task import Inputs, Outputs

WIDTH = 8
"""Candidates in a stack. Fixed: kernels may round differently for another number of them."""
_WORTH = 1.1
"""How much faster a stack must be to be used."""


def run_stacked(
    model: nn.Module, weights: Mapping[str, Sequence[Tensor]], inputs: Inputs
) -> list[Outputs]:
    """k outputs of `model` on `inputs`, with k values for each parameter that `weights` names."""
    stacked = {name: torch.stack(list(values)) for name, values in weights.items()}
    args, kwargs = trees.arguments(inputs)
    outputs = vmap(lambda own: functional_call(model, own, args, kwargs))(stacked)
    count = len(next(iter(stacked.values())))
    return [trees.mapped(lambda tensor: tensor[i], outputs) for i in range(count)]  # noqa: B023


def pays(single: Callable[[], object], stacked: Callable[[], object], device: torch.device) -> bool:
    """Whether a stack takes less time than its candidates one after the other: the better of three
    runs each, alternating."""
    best = [float("inf"), float("inf")]
    for _ in range(4):  # the first of them warms up
        for i, run in enumerate((single, stacked)):
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            run()
            torch.cuda.synchronize(device)
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0] * WIDTH > best[1] * _WORTH
