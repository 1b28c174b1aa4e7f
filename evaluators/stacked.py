"""Several candidates in one pass, their weights stacked (torch.func): for models too small to keep a GPU busy one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from evaluators.batchnorm import layers

WIDTH = 8
"""Candidates in a stack. Fixed: kernels may round differently for another number of them."""
_WORTH = 1.1
"""How much faster a stack must be to be used."""


def run_stacked(model: nn.Module, weights: Mapping[str, Sequence[Tensor]], inputs: Tensor) -> Tensor:
    """Outputs [k, n, ...] of `model` on `inputs` [n, ...] with k values for each parameter that `weights` names."""
    stacked = {name: torch.stack(list(values)) for name, values in weights.items()}
    return vmap(lambda own: functional_call(model, own, (inputs,)))(stacked)


@contextmanager
def without_running_statistics(model: nn.Module) -> Iterator[None]:
    """Batch-norm by each batch's own statistics, and none kept: what is kept cannot be changed within a stack."""
    changed = layers(model)
    before = [(m.running_mean, m.running_var, m.track_running_stats) for m in changed]
    try:
        for module in changed:
            module.running_mean, module.running_var, module.track_running_stats = None, None, False
        yield
    finally:
        for module, (mean, var, tracked) in zip(changed, before, strict=True):
            module.running_mean, module.running_var, module.track_running_stats = mean, var, tracked


def pays(single: Callable[[], object], stacked: Callable[[], object], device: torch.device) -> bool:
    """Whether a stack takes less time than its candidates one after the other: the better of three runs each, alternating."""
    best = [float("inf"), float("inf")]
    for _ in range(4):  # the first of them warms up
        for i, run in enumerate((single, stacked)):
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            run()
            torch.cuda.synchronize(device)
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0] * WIDTH > best[1] * _WORTH
