"""Training that holds what compression made: zeros stay zero, and quantized weights stay on their
grids, to the bit.

A held layer's weight is made anew at each step from a free one: times its mask, and rounded to its
grid, whose scales learn along (learned step sizes: Esser et al. 2020, "LSQ", equations 1 to 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from apportion.compressors.grids import Grid

_LEAST = 1e-8
"""A scale does not shrink below it."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What is held of a layer's weight: where it may be other than zero (bool, its shape; None:
    everywhere), and its grid, whose scales learn or are held too."""

    mask: Tensor | None = None
    grid: Grid | None = None
    learn: bool = True


@contextmanager
def held(model: nn.Module, what: Mapping[str, Hold]) -> Iterator[dict[str, Grid]]:
    """Inside, the layers named train as their Hold says, with all that share their weights; when
    the block ends, whether by an error or not, weights are plain again, and shared ones still
    shared. The grids that they lie on then are in the dictionary."""
    grids: dict[str, Grid] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    begun: list[tuple[str, list[nn.Module]]] = []
    try:
        for name, hold in what.items():
            weight = modules[name].weight
            assert isinstance(weight, Tensor)
            made = _Held(weight, hold)
            begun.append((name, []))
            for module in model.modules():
                if module._parameters.get("weight") is weight:
                    parametrize.register_parametrization(module, "weight", made)
                    begun[-1][1].append(module)
        yield grids
    finally:
        for name, sharing in begun:
            first = modules[name]
            made = first.parametrizations.weight[0]
            weight, grid = made.final(first.weight.detach())
            for module in sharing:
                parametrize.remove_parametrizations(module, "weight")
            with torch.no_grad():
                first.weight.copy_(weight)
            if grid is not None:
                grids[name] = grid


class _Held(nn.Module):
    mask: Tensor | None
    zero: Tensor

    def __init__(self, weight: Tensor, hold: Hold) -> None:
        super().__init__()
        self.register_buffer("mask", None if hold.mask is None else hold.mask.to(weight.device))
        self._bits = 0
        if hold.grid is not None:
            self._bits = hold.grid.bits
            self.scale = nn.Parameter(hold.grid.scale.to(weight).clone(), requires_grad=hold.learn)
            self.register_buffer("zero", hold.grid.zero.to(weight).clone())
            self._slow = (weight.numel() / len(hold.grid.scale) * (2**self._bits - 1)) ** -0.5

    def forward(self, weight: Tensor) -> Tensor:
        if self._bits:
            scale = self._scale()
            scale = scale + (self._slow - 1) * (
                scale - scale.detach()
            )  # its gradient alone is scaled (section 2.2)
            codes = _Codes.apply(weight.flatten(1) / scale, self.zero, 2**self._bits - 1)
            weight = (scale * (codes - self.zero)).reshape(weight.shape)
        return weight if self.mask is None else weight * self.mask

    def final(self, weight: Tensor) -> tuple[Tensor, Grid | None]:
        """The weight as it is stored, and its grid."""
        if not self._bits:
            return weight, None
        grid = Grid(self._scale().detach().float().cpu(), self.zero.float().cpu(), self._bits)
        flat = weight.flatten(1).float().cpu()
        return grid.values(grid.codes(flat)).reshape(weight.shape).to(weight), grid

    def _scale(self) -> Tensor:
        return self.scale.abs().clamp(min=_LEAST)


class _Codes(torch.autograd.Function):
    """weight / scale -> codes; straight through as far as half a step beyond the grid's ends:
    weights that begin on the grid could not leave its ends otherwise."""

    @staticmethod
    def forward(context: Any, ratio: Tensor, zero: Tensor, top: int) -> Tensor:
        codes = ratio.round() + zero
        context.save_for_backward((codes >= 0) & (codes <= top))
        return codes.clamp(0, top)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = context.saved_tensors
        return gradient * inside, None, None
