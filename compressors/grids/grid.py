"""What quantized weights lie on: scale (code - zero), or scale times the value that a codebook has
for the code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from apportion.compressors.grids.codebook import Codebook


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
    """`scale` and `zero` (whole numbers in [0, 2^bits - 1]), float32: [rows, 1] of each row, [1, 1]
    of the whole tensor, or [rows, columns / group] of every `group` consecutive columns of a row.
    `book`: the values that codes stand for, times the scale; codes are whole numbers from `zero` on
    where there is none. `format`: the name of the weight format that stores it; empty for grids per
    row or tensor. `unit`: float32 [1], what scales are multiples of, where they have two parts."""

    scale: Tensor
    zero: Tensor
    bits: int
    group: int = 0
    book: Codebook | None = None
    format: str = ""
    unit: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether it has one scale and zero per row or tensor, and no codebook."""
        return self.group == 0 and self.book is None

    @property
    def spacing(self) -> float:
        """The widest step between neighbours, in scales: half of it is the farthest that a weight
        inside the range can be from the grid."""
        return 1.0 if self.book is None else self.book.spacing

    def codes(self, weight: Tensor) -> Tensor:
        """weight [rows, d] -> codes [rows, d], whole numbers in the type of `weight`."""
        scale = self._wide(self.scale, weight.shape[1]).to(weight.dtype)
        if self.book is not None:
            return self.book.codes(weight / scale).to(weight.dtype)
        zero = self._wide(self.zero, weight.shape[1]).to(weight.dtype)
        return (torch.round(weight / scale) + zero).clamp(0, 2**self.bits - 1)

    def values(self, codes: Tensor) -> Tensor:
        """codes [rows, d] -> float32 weights: what is stored, stitched and read back, to the
        bit."""
        scale = self._wide(self.scale, codes.shape[1])
        if self.book is not None:
            return scale * self.book.values_of(codes)
        return scale * (codes.float() - self._wide(self.zero, codes.shape[1]))

    def nearest(self, weight: Tensor) -> Tensor:
        """weight [rows, d] -> the nearest weights on the grid, in the type of `weight`."""
        scale = self._wide(self.scale, weight.shape[1]).to(weight.dtype)
        if self.book is not None:
            return scale * self.book.nearest(weight / scale)
        zero = self._wide(self.zero, weight.shape[1]).to(weight.dtype)
        return scale * (self.codes(weight) - zero)

    def steps(self, weight: Tensor) -> Tensor:
        """The widest step at each weight, in its type: [rows, 1], [1, 1] or [rows, d]."""
        return self._wide(self.scale, weight.shape[1]).to(weight.dtype) * self.spacing

    def at(self, columns: Tensor) -> Grid:
        """The grid of weights whose columns [rows, m] are these, in this order."""
        if self.group == 0:
            return self
        which = columns // self.group
        return replace(
            self, scale=self.scale.gather(1, which), zero=self.zero.gather(1, which), group=1
        )

    def cpu(self) -> Grid:
        return self.to("cpu")

    def to(self, device: torch.device | str) -> Grid:
        unit = None if self.unit is None else self.unit.to(device)
        return replace(self, scale=self.scale.to(device), zero=self.zero.to(device), unit=unit)

    def rows(self, which: slice | Tensor) -> Grid:
        """The grids of some rows alone."""
        if len(self.scale) == 1:
            return self
        return replace(self, scale=self.scale[which], zero=self.zero[which])

    def _wide(self, each: Tensor, columns: int) -> Tensor:
        return each if each.shape[1] in (1, columns) else each.repeat_interleave(self.group, 1)


def joined(grids: Sequence[Grid]) -> Grid:
    """The grid of all rows, from those of some each."""
    first = grids[0]
    if all(own is first for own in grids):  # one for the whole tensor
        return first
    scale, zero = (torch.cat(own) for own in ([g.scale for g in grids], [g.zero for g in grids]))
    return replace(first, scale=scale, zero=zero)
