"""Quantization grids: q = clamp(round(w / scale) + zero, 0, 2^bits - 1), and w ~ scale (q -
zero)."""

from __future__ import annotations

import torch
from torch import Tensor

from apportion.compressors.grids.grid import Grid, GridOptions

_HALVES = torch.finfo(torch.float16)
_NORM, _STEPS, _SHRINK = 2.4, 100, 0.8
"""Of the MSE search, as the published code has them: |error|^2.4, ranges of 100 %, 99 %, ... down
to 20 % of the full one."""


def fit_grid(
    weight: Tensor,
    bits: int,
    options: GridOptions | None = None,
    counts: Tensor | None = None,
    halves: bool = False,
) -> Grid:
    """The grid that holds 0 and has the least sum |w - nearest(w)|^2.4 among ranges shrunk in 80
    steps of 1 % (Frantar & Alistarh 2022, section 6 and published code), or the one over the full
    range.

    Args:
        weight: [rows, d].
        bits: of a code.
        options: how it is made.
        counts: [rows, d], how often each value is there (once by default).
        halves: scales are numbers of float16, and rounded before they are compared.

    Returns:
        A grid per row, or [1, 1] of the tensor.

    Raises:
        Nothing.
    """
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
        if halves:
            candidate = (
                candidate.clamp(_HALVES.smallest_normal * 2**-10, _HALVES.max).half().float()
            )
        offset = (
            torch.full_like(low, 2 ** (bits - 1))
            if options.symmetric
            else torch.round(-share * low / candidate)
        )
        if halves:  # a scale that was rounded down could ask for one code more
            offset = offset.clamp(0, 2**bits - 1)
        error = (Grid(candidate, offset, bits).nearest(w) - w).abs().pow(_NORM)
        error = (error if counts is None else error * counts).sum(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero = torch.where(better, candidate, scale), torch.where(better, offset, zero)
    return Grid(scale, zero, bits)
