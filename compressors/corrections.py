"""Corrections after stitching, each by a name: what compression moved in a model's activations is
put back where that costs nothing at inference.

batchnorm    the running statistics of batch-norm averaged anew
statistics   mean and variance per channel matched to the dense model's at every normalisation; at
             the layers that have a bias where the model has no normalisation (folded, or absent)
bias         the mean per channel alone, at every normalisation and at every layer that has a bias
             (Nagel et al. 2019)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from apportion.compressors.calibration import Calibration
from apportion.compressors.errors import UnknownNameError
from apportion.compressors.layers import hooked

NAMES = ("batchnorm", "statistics", "bias")
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_TINY = 1e-12
"""A variance below it is none: such a channel is moved, not stretched."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of a module's outputs, float64, in the shape of its bias."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, slots=True)
class Recorded:
    """A module's moments over all batches, and batch by batch."""

    whole: Moments
    batches: tuple[Moments, ...]


def check_correction(name: str) -> None:
    """Raises UnknownNameError."""
    if name not in NAMES:
        raise UnknownNameError("correction", name, NAMES, "corrections")


def needs_dense(names: Iterable[str]) -> bool:
    """Whether a correction compares with the dense model's outputs (`record`)."""
    return bool({"statistics", "bias"} & set(names))


def possible(names: Iterable[str], model: nn.Module) -> tuple[str, ...]:
    """Those that can change something: without batch-norm there is nothing to re-tune."""
    return tuple(name for name in names if name != "batchnorm" or tuned(model))


def correct(
    name: str, model: nn.Module, calibration: Calibration, dense: Mapping[str, Recorded]
) -> None:
    """Apply one correction in place. `dense` is what `record` gave for the dense model on the same
    data."""
    check_correction(name)
    if name == "batchnorm":
        retune_batchnorm(model, calibration)
    else:
        _match(model, calibration, dense, variance=name == "statistics")


def retune_batchnorm(model: nn.Module, calibration: Calibration) -> None:
    """Replace the running statistics of every batch-norm layer by their plain average over the
    batches, as they are with the model's weights now. Other modules stay in the mode they are in;
    flags and momenta are put back. A model without batch-norm is left alone."""
    layers = tuned(model)
    if not layers:
        return
    before = [(m.training, m.momentum) for m in layers]
    try:
        for module in layers:
            module.reset_running_stats()
            module.training = True
            module.momentum = None  # cumulative average
        calibration.run(model)
    finally:
        for module, (training, momentum) in zip(layers, before, strict=True):
            module.training, module.momentum = training, momentum


def tuned(model: nn.Module) -> list[_BatchNorm]:
    """The batch-norm layers that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def record(model: nn.Module, calibration: Calibration) -> dict[str, Recorded]:
    """Moments of the outputs of all modules that a correction may change, by name. The model runs
    as it is."""
    sums = {name: _Sums(module) for name, module in targets(model, variance=False).items()}
    with hooked() as handles:
        modules = dict(model.named_modules())
        for name, total in sums.items():
            handles.append(modules[name].register_forward_hook(total.watch))
        calibration.run(model)
    return {
        name: Recorded(total.moments(), tuple(total.batches))
        for name, total in sums.items()
        if total.count
    }


def targets(model: nn.Module, *, variance: bool) -> dict[str, nn.Module]:
    """The modules with a bias at which outputs are matched: normalisations; and layers, for the
    mean alone or where the model has no normalisation."""
    with_bias: dict[str, nn.Module] = {
        n: m for n, m in model.named_modules() if isinstance(getattr(m, "bias", None), Tensor)
    }
    norms: dict[str, nn.Module] = {
        n: m for n, m in with_bias.items() if isinstance(m, (_NormBase, nn.LayerNorm, nn.GroupNorm))
    }
    if variance and norms:
        return norms
    return {n: m for n, m in with_bias.items() if n in norms or isinstance(m, _LAYERS)}


@contextmanager
def restore_state(model: nn.Module) -> Iterator[None]:
    """Put everything that a correction changes back as it was, whatever happens inside."""
    parameters = [(p, p.data) for m in model.modules() for p in m.parameters(recurse=False)]
    buffers = [(b, b.clone()) for m in tuned(model) for b in m.buffers(recurse=False)]
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data  # corrections give new tensors and leave the old ones alone
        for buffer, before in buffers:
            buffer.copy_(before)


def _match(
    model: nn.Module, calibration: Calibration, dense: Mapping[str, Recorded], variance: bool
) -> None:
    """One pass: every module's outputs are brought to the dense model's moments on the same batch
    as they come, so that those behind it see about what they will see; then the change over all
    batches is folded into its weight and bias."""
    modules = {
        name: module for name, module in targets(model, variance=variance).items() if name in dense
    }
    sums = {name: _Sums(module) for name, module in modules.items()}
    with torch.no_grad(), hooked() as handles:
        for name, module in modules.items():
            handles.append(
                module.register_forward_hook(_on_the_way(sums[name], dense[name], variance))
            )
        calibration.run(model)
        for name, module in modules.items():
            if sums[name].count:
                stretch, shift = _change(sums[name].moments(), dense[name].whole, variance)
                _fold(module, stretch, shift)


def _change(now: Moments, dense: Moments, variance: bool) -> tuple[Tensor, Tensor]:
    """y -> stretch y + shift brings the moments `now` to the dense model's."""
    stretch = torch.ones_like(now.mean)
    if variance:
        there = (now.variance > _TINY) & (dense.variance > _TINY)
        stretch = torch.where(
            there, (dense.variance / now.variance.clamp(min=_TINY)).sqrt(), stretch
        )
    return stretch, dense.mean - stretch * now.mean


def _fold(module: nn.Module, stretch: Tensor, shift: Tensor) -> None:
    bias: Any = module.bias
    if not bool((stretch == 1).all()):
        weight: Any = module.weight
        along = (
            stretch.reshape(-1, *(1,) * (weight.dim() - 1))
            if isinstance(module, _LAYERS)
            else stretch
        )
        weight.data = (weight.double() * along).to(
            weight.dtype
        )  # a new tensor: the old one may be shared with a cache
    bias.data = (bias.double() * stretch + shift).to(bias.dtype)


def _on_the_way(
    total: _Sums, dense: Recorded, variance: bool
) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        stretch, shift = _change(total.add(output), dense.batches[len(total.batches) - 1], variance)
        shape = _broadcast(module, output)
        return (output * stretch.to(output.dtype).reshape(shape)) + shift.to(output.dtype).reshape(
            shape
        )

    return hook


class _Sums:
    """Sums over the outputs of one module, per channel."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.count = 0
        self._sum: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0
        self.batches: list[Moments] = []

    def watch(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.add(output)

    def add(self, output: Tensor) -> Moments:
        """Take one batch's outputs; their own moments."""
        shape = _broadcast(self._module, output)
        over = [i for i, extent in enumerate(shape) if extent == 1 and i < output.dim()]
        kept: Any = self._module.bias
        x = output.detach().double()
        count = output.numel() // kept.numel()
        total = x.sum(over).reshape(kept.shape)
        squares = (x**2).sum(over).reshape(kept.shape)
        self.count += count
        self._sum, self._squares = self._sum + total, self._squares + squares
        self.batches.append(_moments(total, squares, count))
        return self.batches[-1]

    def moments(self) -> Moments:
        assert isinstance(self._sum, Tensor)
        assert isinstance(self._squares, Tensor)
        return _moments(self._sum, self._squares, self.count)


def _moments(total: Tensor, squares: Tensor, count: int) -> Moments:
    mean = total / max(1, count)  # 0 for an expert that got no token of this batch
    return Moments(mean, (squares / max(1, count) - mean**2).clamp(min=0))


def _broadcast(module: nn.Module, output: Tensor) -> tuple[int, ...]:
    """The shape in which the module's bias stands beside its output."""
    bias: Any = module.bias
    if isinstance(module, (nn.LayerNorm, nn.Linear)):
        return (*(1,) * (output.dim() - bias.dim()), *bias.shape)
    return (1, len(bias), *(1,) * (output.dim() - 2))
