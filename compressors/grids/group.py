"""w4g128 and the like: a grid for each row and group of consecutive columns.

Scales are kept in float16, as runtimes have them: 16 bits a group, where float32 would cost another
half bit per weight at 32 columns and gain nothing (rounding a scale to 11 bits moves a weight by
less than a 2,000th of itself). Zeros are codes, and as small; symmetric grids have none to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from apportion.compressors.formats import Format
from apportion.compressors.grids.affine import fit_grid
from apportion.compressors.grids.grid import Grid, GridOptions
from apportion.compressors.grids.packing import pack, unpack


def fit(own: Format, weight: Tensor, options: GridOptions, _like: Grid | None = None) -> Grid:
    """weight [rows, d], d a multiple of the block. Every group is fitted as a row of a grid per
    row is; `options.per` says nothing here."""
    options = replace(options, per="channel")
    found = fit_grid(weight.reshape(-1, own.block), own.bits, options, halves=True)
    shape = (len(weight), -1)
    scale, zero = found.scale.reshape(shape), found.zero.reshape(shape)
    return Grid(scale, zero, own.bits, own.block, format=own.name)


def store(own: Format, grid: Grid) -> dict[str, Tensor]:
    """`scale` [rows, groups]: float16, or float32 where a scale is not one (a layer's rows were
    stretched since). `zero`: packed codes, in the same order; absent where all are 2^(bits - 1)."""
    half = grid.scale.half()
    parts = {"scale": half if torch.equal(half.float(), grid.scale) else grid.scale.clone()}
    if not (grid.zero == 2 ** (own.bits - 1)).all():
        parts["zero"] = pack(grid.zero.to(torch.uint8).reshape(-1), own.bits)
    return parts


def read(own: Format, parts: Mapping[str, Tensor], rows: int) -> Grid:
    scale = parts["scale"].float().reshape(rows, -1)
    middle = torch.full_like(scale, 2 ** (own.bits - 1))
    zero = middle
    if "zero" in parts:
        zero = unpack(parts["zero"], own.bits, scale.numel()).float().reshape(scale.shape)
    return Grid(scale, zero, own.bits, own.block, format=own.name)
