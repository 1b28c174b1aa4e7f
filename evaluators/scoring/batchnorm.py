"""The three ways to treat batch-norm while a candidate is scored.

running      the dense model's running statistics, as in eval mode
batch        the statistics of the batch itself, as SPDY scores (Frantar & Alistarh 2022); the
             batches' order and size matter
recalibrate  running statistics averaged anew over the calibration data, for every candidate: two
             passes instead of one
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from apportion.compressors.calibration import call
from apportion.compressors.corrections import tuned
from apportion.compressors.errors import DataError, UnknownNameError

MODES = ("running", "batch", "recalibrate")


def check_mode(mode: str) -> None:
    """Raises UnknownNameError."""
    if mode not in MODES:
        raise UnknownNameError("batchnorm mode", mode, MODES)


def check_single(model: nn.Module, inputs: Any, samples: int, batch_size: int) -> None:
    """Batches of `batch_size` may leave one of `samples` alone; a batch-norm to which that is
    one value per channel has no statistics of it. `inputs`: what the model is called with for one
    sample. Raises DataError, with the layer."""
    if samples % batch_size != 1 % batch_size or not tuned(model):
        return
    names = {module: name for name, module in model.named_modules()}
    reached: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda module, _inputs: reached.append(module))
        for module in tuned(model)
    ]
    try:
        with torch.no_grad(), batch_statistics(model):
            call(model, inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise DataError(
            "workload.batch_size",
            f"{samples} samples in batches of {batch_size} leave one alone, on which batch-norm "
            f"{names[reached[-1]]!r} has no statistics: take another batch size or number of "
            "samples",
        ) from error
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise by each batch's own statistics; running statistics, flags and counters are the old
    ones afterwards."""
    # Momentum 0: running = 1 * running + 0 * batch, left as it is.
    with _changed(model, training=True, momentum=0.0, num_batches_tracked=None):
        yield


@contextmanager
def without_running_statistics(model: nn.Module) -> Iterator[None]:
    """Batch-norm by each batch's own statistics, and none kept: within a stack of models, none can
    be."""
    with _changed(model, running_mean=None, running_var=None, track_running_stats=False):
        yield


@contextmanager
def _changed(model: nn.Module, **attributes: Any) -> Iterator[None]:
    """Other attributes in every batch-norm layer; the old ones afterwards."""
    changed = tuned(model)
    before = [{name: getattr(module, name) for name in attributes} for module in changed]
    try:
        for module in changed:
            for name, value in attributes.items():
                setattr(module, name, value)
        yield
    finally:
        for module, old in zip(changed, before, strict=True):
            for name, value in old.items():
                setattr(module, name, value)
