"""The block types of GGUF files that a scale for each block says (ggml's q4_0, q5_0, q8_0, tq2_0:
d (code - zero), d in float16), or a scale and a base (q4_1, q5_1: d code + m, both in float16).

ggml's own code rounds to the range of each block; here scales are searched, and codes are what an
elimination chooses. d may be below zero: the end of the codes that reaches farther then lies on the
other side. Codes of tq2_0 are -1 ... 2 times d, as ggml reads them, though it writes ternary ones
alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from apportion.compressors.formats import Format
from apportion.compressors.grids.grid import Grid, GridOptions

ZEROS = {"q4_0": 8, "q5_0": 16, "q8_0": 128, "tq2_0": 1}
"""The code of zero; formats that are not here have a base instead."""
_NORM, _STEPS = 2.4, 40
"""|error|^2.4 is what the search minimises, as grids per row do, among so many ranges."""
_HALF = torch.finfo(torch.float16)


def fit(own: Format, weight: Tensor, options: GridOptions, _like: Grid | None = None) -> Grid:
    """weight [rows, d], d a multiple of the block -> its grid. `options.fit`: minmax is ggml's own
    choice (the weight farthest from zero at the code farthest from it; the least and the greatest
    at the ends of the codes); mse the least |error|^2.4 among shrunk ranges and the least squares
    on the best one's codes. The other options say nothing here."""
    blocks = weight.float().reshape(-1, own.block)
    offered = _symmetric if own.name in ZEROS else _based
    grid, least = None, torch.empty(0)
    for one in offered(own, blocks, options.fit == "mse"):
        error = (one.nearest(blocks) - blocks).abs().pow(_NORM).sum(1, keepdim=True)
        if grid is None:
            grid, least = one, error
            continue
        grid, least = _where(error < least, one, grid), torch.minimum(error, least)
    assert grid is not None
    if options.fit == "mse":
        again = _least_squares(own, grid, blocks)
        error = (again.nearest(blocks) - blocks).abs().pow(_NORM).sum(1, keepdim=True)
        grid = _where(error < least, again, grid)
    return grid.each(lambda part: part.reshape(len(weight), -1))


def store(own: Format, grid: Grid) -> dict[str, Tensor]:
    """`scale`, and `base` where the format has one, [rows, blocks]: float16, or float32 where a
    number is none (a layer's rows were stretched since). Raises ValueError for zeros that the
    format does not have."""
    if not (grid.zero == ZEROS.get(own.name, 0)).all():
        raise ValueError(f"{own.name} has no such code for zero")
    parts = {"scale": grid.scale} | ({} if grid.base is None else {"base": grid.base})
    return {name: _small(part) for name, part in parts.items()}


def read(own: Format, parts: Mapping[str, Tensor], rows: int) -> Grid:
    scale, base = (
        parts[name].float().reshape(rows, -1) if name in parts else None
        for name in ("scale", "base")
    )
    assert scale is not None
    return _grid(own, scale, base)


def _grid(own: Format, scale: Tensor, base: Tensor | None = None) -> Grid:
    zero = torch.full_like(scale, ZEROS.get(own.name, 0))
    return Grid(scale, zero, own.bits, own.block, format=own.name, base=base)


def _symmetric(own: Format, blocks: Tensor, search: bool) -> Iterator[Grid]:
    """Grids of blocks [n, block], scales [n, 1]."""
    farthest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    farthest = torch.where(farthest == 0, 1.0, farthest)
    zero, above = ZEROS[own.name], 2**own.bits - 1 - ZEROS[own.name]
    yield _grid(own, _half_scale(-farthest / zero))
    if search:
        for share in _shares(own):
            scale = farthest / min(zero, above) * share
            yield _grid(own, _half_scale(scale))
            yield _grid(own, _half_scale(-scale))


def _based(own: Format, blocks: Tensor, search: bool) -> Iterator[Grid]:
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    flat = low == high
    middle, half = (low + high) / 2, torch.where(flat, low.abs() + (low == 0), (high - low) / 2)
    for share in _shares(own) if search else (1.0,):
        scale = _half_scale(2 * share * half / (2**own.bits - 1))
        base = _half(torch.where(flat, low, middle - share * half))
        yield _grid(own, scale, base)


def _least_squares(own: Format, grid: Grid, blocks: Tensor) -> Grid:
    """The grid on which the codes of `grid` are nearest to the weights."""
    codes = grid.codes(blocks) - grid.zero
    if grid.base is None:
        square = codes.square().sum(1, keepdim=True)
        scale = (codes * blocks).sum(1, keepdim=True) / square.clamp(min=1)
        return _grid(own, _half_scale(torch.where(square == 0, grid.scale, scale)))
    mean, centre = codes.mean(1, keepdim=True), blocks.mean(1, keepdim=True)
    spread = (codes - mean).square().sum(1, keepdim=True)
    scale = ((codes - mean) * blocks).sum(1, keepdim=True) / spread.clamp(min=0.5)
    scale = _half_scale(torch.where(spread == 0, grid.scale, scale))
    return _grid(own, scale, _half(centre - scale * mean))


def _shares(own: Format) -> list[float]:
    """Of the full range: codes of two bits do best with a third of it."""
    least = 0.2 if own.bits <= 2 else 0.6
    return [1 - (1 - least) * step / _STEPS for step in range(_STEPS + 1)]


def _half(values: Tensor) -> Tensor:
    return values.clamp(-_HALF.max, _HALF.max).half().float()


def _half_scale(values: Tensor) -> Tensor:
    """Numbers of float16 other than zero."""
    least = _HALF.smallest_normal * 2**-10
    size = values.abs().clamp(least, _HALF.max).half().float()
    return torch.where(values < 0, -size, size)


def _small(part: Tensor) -> Tensor:
    half = part.half()
    return half if torch.equal(half.float(), part) else part.clone()


def _where(which: Tensor, one: Grid, other: Grid) -> Grid:
    scale, base = torch.where(which, one.scale, other.scale), None
    if one.base is not None and other.base is not None:
        base = torch.where(which, one.base, other.base)
    return replace(one, scale=scale, base=base)
