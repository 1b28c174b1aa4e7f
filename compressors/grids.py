"""Quantization grids: q = clamp(round(w / scale) + zero, 0, 2^bits - 1), and w ~ scale (q -
zero)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_NORM, _STEPS, _SHRINK = 2.4, 100, 0.8
"""Of the MSE search, as the published code has them: |error|^2.4, ranges of 100 %, 99 %, ... down
to 20 % of the full one."""


@dataclass(frozen=True, slots=True)
class GridOptions:
    """How weight grids are made: one per output channel or per tensor; symmetric about zero or not;
    over the whole range (minmax) or over the shrunk range with the least |error|^2.4 (mse); with
    any scales, or with powers of two alone, by which hardware multiplies by shifting (Gysel et al.
    2016, "Ristretto")."""

    per: Literal["channel", "tensor"] = "channel"
    symmetric: bool = False
    fit: Literal["mse", "minmax"] = "mse"
    scale: Literal["free", "power-of-two"] = "free"


@dataclass(frozen=True, slots=True)
class Grid:
    """`scale` and `zero` (whole numbers in [0, 2^bits - 1]), float32 [rows, 1]; [1, 1] for one grid
    per tensor."""

    scale: Tensor
    zero: Tensor
    bits: int

    def codes(self, weight: Tensor) -> Tensor:
        """weight [rows, d] -> codes [rows, d], whole numbers in the type of `weight`."""
        scale, zero = self.scale.to(weight.dtype), self.zero.to(weight.dtype)
        return (torch.round(weight / scale) + zero).clamp(0, 2**self.bits - 1)

    def values(self, codes: Tensor) -> Tensor:
        """codes [rows, d] -> float32 weights: what is stored, stitched and read back, to the
        bit."""
        return self.scale * (codes.float() - self.zero)

    def nearest(self, weight: Tensor) -> Tensor:
        """weight [rows, d] -> the nearest weights on the grid, in the type of `weight`."""
        return self.scale.to(weight.dtype) * (self.codes(weight) - self.zero.to(weight.dtype))

    def cpu(self) -> Grid:
        return Grid(self.scale.cpu(), self.zero.cpu(), self.bits)

    def rows(self, which: slice) -> Grid:
        """The grids of some rows alone."""
        return (
            self if len(self.scale) == 1 else Grid(self.scale[which], self.zero[which], self.bits)
        )


def fit_grid(
    weight: Tensor, bits: int, options: GridOptions | None = None, counts: Tensor | None = None
) -> Grid:
    """The grid that holds 0 and has the least sum |w - nearest(w)|^2.4 among ranges shrunk in 80
    steps of 1 % (Frantar & Alistarh 2022, section 6 and published code), or the one over the full
    range. weight [rows, d]; `counts` [rows, d] says how often each value is there (once by
    default)."""
    options = options or GridOptions()
    w = weight.float()
    if options.per == "tensor":
        w = w.reshape(1, -1)
    low, high = w.amin(1, keepdim=True).clamp(max=0), w.amax(1, keepdim=True).clamp(min=0)
    if options.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    empty = (low == 0) & (high == 0)
    low, high = low.masked_fill(empty, -1.0), high.masked_fill(empty, 1.0)
    best = torch.full_like(low, torch.inf)
    scale, zero = torch.ones_like(low), torch.zeros_like(low)
    for step in range(int(_SHRINK * _STEPS) if options.fit == "mse" else 1):
        share = 1 - step / _STEPS
        candidate = share * (high - low) / (2**bits - 1)
        if options.scale == "power-of-two":  # the next one up: the range still fits
            candidate = torch.exp2(torch.log2(candidate).sub(1e-6).ceil())
        offset = (
            torch.full_like(low, 2 ** (bits - 1))
            if options.symmetric
            else torch.round(-share * low / candidate)
        )
        error = (Grid(candidate, offset, bits).nearest(w) - w).abs().pow(_NORM)
        error = (error if counts is None else error * counts).sum(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero = torch.where(better, candidate, scale), torch.where(better, offset, zero)
    return Grid(scale, zero, bits)
