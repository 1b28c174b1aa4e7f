"""What quantized weights lie on: scale (code - zero), the same and a base, or scale times the value
that a codebook has for the code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    row or tensor. `unit`: float32 [1], what scales are multiples of, where they have two parts.
    `base`: what is added to all values of a group, float32, of the shape of `scale`; zero need not
    be on the grid then. Scales of formats may be below zero."""

    scale: Tensor
    zero: Tensor
    bits: int
    group: int = 0
    book: Codebook | None = None
    format: str = ""
    unit: Tensor | None = None
    base: Tensor | None = None

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
        if self.base is not None:
            weight = weight - self._wide(self.base, weight.shape[1]).to(weight.dtype)
        zero = self._wide(self.zero, weight.shape[1]).to(weight.dtype)
        return (torch.round(weight / scale) + zero).clamp(0, 2**self.bits - 1)

    def values(self, codes: Tensor) -> Tensor:
        """codes [rows, d] -> float32 weights: what is stored, stitched and read back, to the
        bit."""
        scale = self._wide(self.scale, codes.shape[1])
        if self.book is not None:
            return scale * self.book.values_of(codes)
        values = scale * (codes.float() - self._wide(self.zero, codes.shape[1]))
        return values if self.base is None else values + self._wide(self.base, codes.shape[1])

    def nearest(self, weight: Tensor) -> Tensor:
        """weight [rows, d] -> the nearest weights on the grid, in the type of `weight`."""
        scale = self._wide(self.scale, weight.shape[1]).to(weight.dtype)
        if self.book is not None:
            return scale * self.book.nearest(weight / scale)
        zero = self._wide(self.zero, weight.shape[1]).to(weight.dtype)
        near = scale * (self.codes(weight) - zero)
        if self.base is None:
            return near
        return near + self._wide(self.base, weight.shape[1]).to(weight.dtype)

    def steps(self, weight: Tensor) -> Tensor:
        """The widest step at each weight, in its type: [rows, 1], [1, 1] or [rows, d]."""
        return self._wide(self.scale, weight.shape[1]).to(weight.dtype) * self.spacing

    def at(self, columns: Tensor) -> Grid:
        """The grid of weights whose columns [rows, m] are these, in this order."""
        if self.group == 0:
            return self
        which = columns // self.group
        return replace(self.each(lambda own: own.gather(1, which)), group=1)

    def each(self, change: Callable[[Tensor], Tensor]) -> Grid:
        """With this done to scales, zeros and bases."""
        base = None if self.base is None else change(self.base)
        return replace(self, scale=change(self.scale), zero=change(self.zero), base=base)

    def cpu(self) -> Grid:
        return self.to("cpu")

    def to(self, device: torch.device | str) -> Grid:
        unit = None if self.unit is None else self.unit.to(device)
        return replace(self.each(lambda own: own.to(device)), unit=unit)

    def rows(self, which: slice | Tensor) -> Grid:
        """The grids of some rows alone."""
        if len(self.scale) == 1:
            return self
        return self.each(lambda own: own[which])

    def shifted(self, fixed: Tensor) -> tuple[Grid, Tensor | None]:
        """The grid without its base, and what to take off weights [rows, d] for it, nothing where
        they are `fixed` at zero; or itself, and None."""
        if self.base is None:
            return self, None
        wide = self._wide(self.base, fixed.shape[1]).expand(fixed.shape)
        return replace(self, base=None), wide.masked_fill(fixed, 0.0)

    def _wide(self, each: Tensor, columns: int) -> Tensor:
        return each if each.shape[1] in (1, columns) else each.repeat_interleave(self.group, 1)


def joined(grids: Sequence[Grid], along: int = 0) -> Grid:
    """The grid of all rows, from those of some each; or of all groups of columns (`along` 1)."""
    first = grids[0]
    if all(own is first for own in grids):  # one for the whole tensor
        return first
    scale, zero = (
        torch.cat(own, along) for own in ([g.scale for g in grids], [g.zero for g in grids])
    )
    bases = [g.base for g in grids if g.base is not None]
    return replace(first, scale=scale, zero=zero, base=torch.cat(bases, along) if bases else None)
