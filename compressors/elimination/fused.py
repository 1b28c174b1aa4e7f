"""The steps of `factored` as one Triton kernel: what runs on CUDA. One program per row does all
steps up to the next refresh in one launch, where plain torch needs some twenty launches a step.

Importing this needs triton, which torch's CUDA builds bring along. `works_on` compares the kernel
with plain torch on the very device before anything relies on it."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from apportion.compressors.elimination import factored
from apportion.compressors.grids import Grid

log = logging.getLogger(__name__)

_UNSTRUCTURED, _N_OF_M, _ZEROS, _QUANTIZE = (
    tl.constexpr(0),
    tl.constexpr(1),
    tl.constexpr(2),
    tl.constexpr(3),
)


@triton.jit
def _round(x):  # type: ignore[no-untyped-def]
    """To the nearest whole number, halves to the even one, as torch.round does."""
    up = tl.floor(x + 0.5)
    odd = up - 2.0 * tl.floor(up * 0.5) == 1.0
    return tl.where((up - x == 0.5) & odd, up - 1.0, up)


@triton.jit
def _steps(  # type: ignore[no-untyped-def]
    W, D, ALIVE, COLUMN, U, B, OUT_COLUMN, OUT_VALUE, LEFT, FIXED, SCALE, ZERO, DUE,
    b_stride, b_width, u_rows, m, first, count, groups, width, n, highest,
    scales, share,
    RULE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`count` removals from row r = program_id, after `first` others since the last refresh. W, D,
    COLUMN [rows, m] are as in factored.Rows, ALIVE is what is not gone there, U its factor; B [d,
    d] of all rows or [rows, m, m]. Writes the column that each step removed (-1: none) and its loss
    (quantize: the value it was set to). DUE [rows]: steps that the row still takes; LEFT [rows,
    groups]: weights left in each group of `width`; SCALE, ZERO [rows, scales]: of each group of
    `share` columns."""
    r = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < m
    w = tl.load(W + r * m + i, mask=inside, other=0.0)
    d = tl.load(D + r * m + i, mask=inside, other=1.0)
    alive = tl.load(ALIVE + r * m + i, mask=inside, other=0) != 0
    column = tl.load(COLUMN + r * m + i, mask=inside, other=0)
    due = tl.load(DUE + r)
    left = tl.zeros([BLOCK], tl.int32)
    fixed = tl.zeros([BLOCK], tl.int32)
    if RULE == _N_OF_M:
        left = tl.load(LEFT + r * groups + column // width, mask=inside, other=0)
    if RULE == _ZEROS:
        fixed = tl.load(FIXED + r * m + i, mask=inside, other=0).to(tl.int32)
    if RULE == _QUANTIZE:
        of = r * scales + column // share
        scale = tl.load(SCALE + of, mask=inside, other=1.0)
        zero = tl.load(ZERO + of, mask=inside, other=0.0)
    for t in range(count):
        score = w * w / d
        open = alive
        if RULE == _N_OF_M:
            open = alive & (left > n)
        if RULE == _ZEROS:
            score = i.to(d.dtype)
            open = alive & (fixed != 0)
        near = w
        outlier = 0
        if RULE == _QUANTIZE:
            code = _round(w / scale) + zero
            near = scale * (tl.minimum(tl.maximum(code, 0.0), highest) - zero)
            error = (near - w) * (near - w)
            score = error / d
            far = error > scale * scale / 4
            outlier = (tl.max(tl.where(alive & far, error, -1.0), axis=0) > 0).to(tl.int32)
            # the largest error of an outlier where there is one
            score = tl.where(outlier != 0, tl.where(far, -error, float("inf")), score)
        p = tl.argmin(tl.where(open, score, float("inf")), axis=0, tie_break_left=True)
        hit = i == p
        acting = (t < due).to(tl.int32)
        loss = tl.sum(tl.where(hit, score, 0.0), axis=0) / 2
        pivot = tl.sum(tl.where(hit, d, 0.0), axis=0)
        change = tl.sum(tl.where(hit, w - near if RULE == _QUANTIZE else w, 0.0), axis=0)
        gone = tl.sum(tl.where(hit, column, 0), axis=0)
        row = tl.load(B + r * b_stride + p.to(tl.int64) * b_width + i, mask=inside, other=0.0)
        for s in range(first + t):
            earlier = U + (r * u_rows + s) * m
            row -= tl.load(earlier + p) * tl.load(earlier + i, mask=inside, other=0.0)
        root = tl.sqrt(pivot)
        row = tl.where(alive & (acting != 0), row / root, 0.0)
        tl.store(U + (r * u_rows + first + t) * m + i, row, mask=inside)
        tl.store(OUT_COLUMN + r * count + t, tl.where(acting != 0, gone, -1))
        value = tl.sum(tl.where(hit, near, 0.0), axis=0) if RULE == _QUANTIZE else loss
        tl.store(OUT_VALUE + r * count + t, value)
        tl.debug_barrier()  # the next step reads what other threads of this program wrote to U
        w -= row * (change / root)
        d -= row * row
        out = hit & (acting != 0)
        w = tl.where(out, 0.0, w)
        d = tl.where(out, 1.0, d)
        alive = alive & (out == 0)
        if RULE == _N_OF_M:
            left -= ((column // width == gone // width) & (acting != 0)).to(tl.int32)
    tl.store(W + r * m + i, w, mask=inside)
    tl.store(D + r * m + i, d, mask=inside)
    tl.store(ALIVE + r * m + i, alive.to(tl.int8), mask=inside)
    if RULE == _N_OF_M:
        tl.store(LEFT + r * groups + column // width, left, mask=inside)


class _Fused(factored.Rows):
    """The rows of `factored`, stepped by the kernel. `due` [rows]: how many steps each row takes
    before it stands still."""

    def steps(
        self, rule: Any, total: int, due: Tensor | None = None, **given: Any
    ) -> tuple[Tensor, Tensor]:
        """`total` steps of every row. Returns the columns removed, int64 [rows, total] (-1: none),
        and the values that go with them."""
        due = torch.full_like(self.every, total) if due is None else due
        columns, values = [], []
        done = 0
        while done < total:
            count = min(self.period - self.step, total - done)
            column, value = self._launch(rule, count, due - done, given)
            columns.append(column)
            values.append(value)
            done += count
            self.step += count
            if self.step == self.period:
                self.refresh()
        return torch.cat(columns, 1), torch.cat(values, 1)

    def _launch(
        self, rule: Any, count: int, due: Tensor, given: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        rows, m = self.w.shape
        column = self.every.new_empty(rows, count)
        value = self.w.new_empty(rows, count)
        alive = (self.penalty == 0).to(torch.int8)
        base = self.base.contiguous()
        nothing = self.every
        fixed = (
            given["fixed"].gather(1, self.column).to(torch.int8) if "fixed" in given else nothing
        )
        left = given.get("left", nothing)
        _steps[(rows,)](
            self.w, self.diagonal, alive, self.column, self.u, base, column, value, left, fixed,
            given.get("scale", self.w), given.get("zero", self.w), due,
            0 if base.dim() == 2 else base.stride(0), base.shape[-1], self.u.shape[1], m,
            self.step, count, left.shape[-1], given.get("width", 1), given.get("n", 0),
            given.get("highest", 0.0), given.get("scales", 1), given.get("share", 1),
            RULE=rule, BLOCK=triton.next_power_of_2(max(m, 16)), num_warps=8 if m > 1024 else 4,
        )  # fmt: skip
        self.penalty.masked_fill_(alive == 0, torch.inf)
        return column, value


def eliminate(weight: Tensor, hinv: Tensor) -> tuple[Tensor, Tensor]:
    """As `textbook.eliminate`."""
    return _Fused(weight, hinv).steps(_UNSTRUCTURED, weight.shape[1])


def prune_n_of_m(weight: Tensor, hinv: Tensor, n: int, m: int) -> Tensor:
    """As `textbook.prune_n_of_m`."""
    rows = _Fused(weight, hinv)
    groups = weight.shape[1] // m
    left = torch.full((len(weight), groups), m, device=weight.device, dtype=torch.int32)
    rows.steps(_N_OF_M, groups * (m - n), left=left, width=m, n=n)
    return torch.zeros_like(weight).scatter_(1, rows.column, rows.w)


def quantize(weight: Tensor, hinv: Tensor, grid: Grid, fixed: Tensor) -> Tensor:
    """As `textbook.quantize`; on a codebook, which the kernel has no look-up for, by `factored`."""
    if grid.book is not None:
        return factored.quantize(weight, hinv, grid, fixed)
    rows = _Fused(weight, hinv)
    still = fixed.sum(1)
    if most := int(still.max()):  # the columns that stay zero leave H^-1 first, and move nothing
        rows.steps(_ZEROS, most, still, fixed=fixed)
    groups = max(1, grid.scale.shape[1])
    scale, zero = (
        t.to(weight.dtype).expand(len(weight), groups).contiguous() for t in (grid.scale, grid.zero)
    )
    active = weight.shape[1] - still
    given = {
        "scale": scale,
        "zero": zero,
        "scales": groups,
        "share": grid.group or weight.shape[1],
        "highest": float(2**grid.bits - 1),
    }
    columns, values = rows.steps(_QUANTIZE, int(active.max()), active, **given)
    result = torch.zeros(len(weight), weight.shape[1] + 1, dtype=weight.dtype, device=weight.device)
    return result.scatter_(1, columns + 1, values)[:, 1:]  # a row that stood still wrote column -1


@functools.cache
def works_on(device: torch.device) -> bool:
    """Whether the kernel compiles there and does what plain torch does; a warning says what was
    wrong."""
    try:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(300, 72, generator=generator)
        hinv = torch.linalg.inv(x.T @ x / 300 + 0.1 * torch.eye(72)).to(device)
        weight = torch.randn(6, 72, generator=generator).to(device)
        ours, theirs = eliminate(weight, hinv)[1].sum(1), factored.eliminate(weight, hinv)[1].sum(1)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        pattern = prune_n_of_m(weight, hinv, 2, 4)
        torch.testing.assert_close(
            pattern, factored.prune_n_of_m(weight, hinv, 2, 4), rtol=1e-3, atol=1e-3
        )
    except Exception as error:
        log.warning(
            "layers are compressed in plain torch on %s: the Triton kernel does not work there "
            "(%s)",
            device,
            error,
        )
        return False
    return True
