"""Activation quantization: one grid per layer input, calibrated by MSE, and the hook that applies
it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from apportion.compressors.calibration import Calibration
from apportion.compressors.errors import LayerError
from apportion.compressors.grids import GridOptions, fit_grid
from apportion.compressors.kinds.feeding import first_tensor, with_first
from apportion.compressors.kinds.watch import unhurried
from apportion.compressors.layers import LayerSpec, hooked, layer_modules

_BINS = 4096
_SAFETY = 1 + 1e-6


@dataclass(frozen=True, slots=True)
class ActivationGrid:
    """x ~ scale (clamp(round(x / scale) + zero, 0, 2^bits - 1) - zero), for a whole tensor.
    Gradients go straight through where x lies in the grid's range, and are zero elsewhere."""

    bits: int
    scale: float
    zero: int

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            made: Tensor = _StraightThrough.apply(x, self)
            return made
        return self.nearest(x)

    def nearest(self, x: Tensor) -> Tensor:
        """What `x` becomes, in a tensor of its own."""
        return (
            (x / self.scale).round_().add_(self.zero).clamp_(0, 2**self.bits - 1) - self.zero
        ).mul_(self.scale)


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """The same about zero for each token (all along the last dimension): its scale is its largest
    |x| over (2^bits - 1) / 2, found as it comes. Gradients go straight through."""

    bits: int

    def __call__(self, x: Tensor) -> Tensor:
        return x + (self.nearest(x) - x).detach() if x.requires_grad else self.nearest(x)

    def nearest(self, x: Tensor) -> Tensor:
        """What `x` becomes, in a tensor of its own."""
        half = 2 ** (self.bits - 1)
        scale = x.detach().abs().amax(-1, keepdim=True) / (half - 0.5)
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        return (x / scale).round_().clamp_(-half, half - 1).mul_(scale)


InputGrid = ActivationGrid | TokenGrid
"""Of a layer's inputs."""


class _StraightThrough(torch.autograd.Function):
    """Bengio et al. 2013."""

    @staticmethod
    def forward(context: Any, x: Tensor, grid: ActivationGrid) -> Tensor:
        low, high = (grid.scale * (code - grid.zero) for code in (-0.5, 2**grid.bits - 0.5))
        context.save_for_backward((x >= low) & (x <= high))
        return grid.nearest(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (inside,) = context.saved_tensors
        return gradient * inside, None


class InputQuantizer:
    """A forward pre-hook that puts a layer's input on `grid`, given by keyword or not; None lets it
    through."""

    def __init__(self, grid: InputGrid | None) -> None:
        self.grid = grid

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return None if self.grid is None else with_first(args, kwargs, self.grid)


def quantize_input(module: nn.Module, grid: InputGrid | None) -> None:
    """Quantize the first input of `module` from now on; None: no longer. A copy of the module keeps
    what it had."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, InputQuantizer):
            hook.grid = grid
            return
    if grid is not None:
        module.register_forward_pre_hook(InputQuantizer(grid), with_kwargs=True)


def calibrate_activations(
    model: nn.Module, layers: Iterable[LayerSpec], calibration: Calibration, bits: Iterable[int]
) -> dict[str, dict[int, ActivationGrid]]:
    """Layer name -> bits -> the asymmetric grid per tensor with the least sum |x - x^|^2.4 over all
    inputs that the data bring to the layer, in one pass, from a histogram of 4,096 bins; of the
    layers alone whose inputs are a module's. Raises LayerError where an input is not finite."""
    own = [layer for layer in layers if layer.by_module]
    seen = {layer.name: _Histogram(layer.name) for layer in own}
    with hooked() as handles, unhurried():
        for layer, module in layer_modules(model, own):
            watch = partial(_watch, seen[layer.name])
            handles.append(module.register_forward_pre_hook(watch, with_kwargs=True))
        calibration.run(model)
    return {name: histogram.grids(bits) for name, histogram in seen.items()}


def _watch(histogram: _Histogram, _module: nn.Module, args: Any, kwargs: Any) -> None:
    histogram.add(first_tensor(args, kwargs).detach())


class _Histogram:
    """Counts over [-reach, reach]; the reach doubles, and bins merge in pairs, when a value lies
    outside."""

    def __init__(self, layer: str) -> None:
        self._layer = layer
        self._reach = 0.0
        self._low = self._high = 0.0
        self._counts = torch.zeros(_BINS, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        if not x.numel():
            return  # an expert that got no token of this batch
        low, high = (float(v) for v in torch.aminmax(x))
        if not (abs(low) < torch.inf and abs(high) < torch.inf):
            raise LayerError(self._layer, "its inputs hold NaN or infinity")
        self._low, self._high = min(self._low, low), max(self._high, high)
        most = max(-low, high)
        if self._reach == 0.0:
            self._reach = most * _SAFETY
        while 0 < self._reach < most:
            half = self._counts.reshape(-1, 2).sum(1)
            self._counts = torch.cat(
                [torch.zeros(_BINS // 4), half, torch.zeros(_BINS // 4)]
            ).double()
            self._reach *= 2
        if self._reach > 0:
            self._counts += torch.histc(x.float(), _BINS, -self._reach, self._reach).cpu().double()

    def grids(self, bits: Iterable[int]) -> dict[int, ActivationGrid]:
        centres = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (
            2 * self._reach / _BINS
        ) - self._reach
        there = self._counts > 0
        values = torch.cat(
            [centres[there].clamp(self._low, self._high), torch.tensor([self._low, self._high])]
        ).float()[None]
        counts = torch.cat([self._counts[there], torch.zeros(2)])[None]
        found = {}
        for b in bits:
            grid = fit_grid(values, b, GridOptions(per="tensor"), counts)
            found[b] = ActivationGrid(b, float(grid.scale), int(grid.zero))
        return found
