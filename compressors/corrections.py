"""Corrections after stitching: batch-norm statistics averaged anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def retune_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every batch-norm layer by their plain average over `batches` (inputs), as they are
    with the model's weights now. Other modules stay in the mode they are in; flags and momenta are put back. A model
    without batch-norm is left alone."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return
    before = [(m.training, m.momentum) for m in layers]
    try:
        for module in layers:
            module.reset_running_stats()
            module.training = True
            module.momentum = None  # cumulative average
        with torch.no_grad():
            for inputs in batches:
                model(inputs)
    finally:
        for module, (training, momentum) in zip(layers, before, strict=True):
            module.training, module.momentum = training, momentum
