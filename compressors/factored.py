"""ExactOBS in the factored form of `kernels`, in plain torch: all rows at once, on any device. What runs on a GPU, and where no
compiler is.

All take weight [rows, d] and hinv [d, d] (H^-1) of one floating type; ties go to the lowest column. Once B is a row's own,
rows x d x d values are held: the caller cuts the rows into chunks that fit its memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compressors.grids import Grid


class Rows:
    """The state of all rows: H^-1_t = B - U^T U over the columns that are left (`column` [rows, m] says which), in order. A
    column that is gone and not dropped yet is not `alive`: w = 0, diagonal = 1, zeros in every later row of U."""

    def __init__(self, weight: Tensor, hinv: Tensor, extra: int = 0) -> None:
        rows, d = weight.shape
        self.w = weight.clone()
        self.every = torch.arange(rows, device=weight.device)
        self.diagonal = hinv.diagonal().repeat(rows, 1)
        self.alive = torch.ones_like(weight, dtype=torch.bool)
        self.column = torch.arange(d, device=weight.device).repeat(rows, 1)
        self._shared: Tensor | None = hinv
        self._own = weight.new_empty(0)
        self._extra = extra
        self._begin(d)

    def _begin(self, m: int) -> None:
        """Start to collect U anew; a refresh is due after near 2 sqrt(m) steps where memory is the limit, later where
        products gain from a larger share; `extra` steps may come late."""
        self.period, self.step = max(16, int((4 if self.w.device.type == "cpu" else 2) * math.sqrt(m))), 0
        self.u = self.w.new_zeros(len(self.w), self.period + self._extra, m)

    @property
    def base(self) -> Tensor:
        """B: [d, d] while all rows share it, [rows, m, m] then."""
        return self._own if self._shared is None else self._shared

    def remove(self, p: Tensor, change: Tensor, acting: Tensor | None = None) -> Tensor:
        """Lower the weight at position p [rows] by `change` [rows] and take its column out; the weights that are left make up
        for it (eq. 3, lemma 1). Rows that are not `acting` stay as they are. Returns the new row of U, [rows, m]."""
        row = self._own[self.every, p] if self._shared is None else self._shared[p]
        if self.step:
            earlier = self.u[:, : self.step]
            row = row - torch.bmm(earlier[self.every, :, p][:, None, :], earlier).squeeze(1)
        root = self.diagonal[self.every, p].sqrt()
        row = row * self.alive / root[:, None]
        if acting is not None:
            row = row * acting[:, None]
        self.w -= row * (change / root)[:, None]
        self.diagonal -= row**2
        acted = self.every if acting is None else self.every[acting]
        at = p[acted]
        self.w[acted, at], self.diagonal[acted, at], self.alive[acted, at] = 0, 1, False
        self.u[:, self.step] = row
        self.step += 1
        return row

    def refresh(self) -> Tensor | None:
        """Fold U into B, and drop what is gone when that is a fifth. Returns the old positions that stay [rows, m], where they
        changed."""
        m, left = self.w.shape[1], int(self.alive.sum(1).max())
        keep: Tensor | None = None
        u = self.u[:, : self.step]
        if self._shared is not None or left <= 0.8 * m:
            keep = (~self.alive).to(torch.int8).argsort(dim=1, stable=True)[:, :left].sort(1).values
            self._own, self._shared = _inner(self.base, keep), None
            u = u.gather(2, keep[:, None, :].expand(-1, self.step, -1))
            self.w, self.diagonal, self.alive, self.column = (
                t.gather(1, keep) for t in (self.w, self.diagonal, self.alive, self.column)
            )
        self._own.baddbmm_(u.mT, u, alpha=-1)
        self._begin(self.w.shape[1])
        return keep


def _inner(base: Tensor, keep: Tensor) -> Tensor:
    """Rows and columns keep [rows, left] of B, [d, d] or [rows, m, m], one choice a row: [rows, left, left]."""
    every = base.expand(len(keep), -1, -1)
    if base.device.type == "cpu":
        return torch.stack([own[kept].index_select(1, kept) for own, kept in zip(every, keep, strict=True)])
    inner = every.gather(1, keep[:, :, None].expand(-1, -1, base.shape[-1]))
    return inner.gather(2, keep[:, None, :].expand(-1, keep.shape[1], -1))


def eliminate(weight: Tensor, hinv: Tensor) -> tuple[Tensor, Tensor]:
    """As `textbook.eliminate`."""
    rows = Rows(weight, hinv)
    order, losses = torch.empty_like(weight, dtype=torch.int64), torch.empty_like(weight)
    for turn in range(weight.shape[1]):
        lowest, p = (rows.w**2 / rows.diagonal).masked_fill(~rows.alive, torch.inf).min(1)
        order[:, turn], losses[:, turn] = rows.column[rows.every, p], lowest / 2
        rows.remove(p, rows.w[rows.every, p])
        if rows.step == rows.period:
            rows.refresh()
    return order, losses


def eliminate_blocks(weight: Tensor, hinv: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """As `textbook.eliminate_blocks`."""
    count, blocks = len(weight), weight.shape[1] // size
    rows = Rows(weight, hinv, size)
    order, losses = weight.new_empty(count, blocks, dtype=torch.int64), weight.new_empty(count, blocks)
    pairs = hinv.reshape(blocks, size, blocks, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    inner = pairs.repeat(count, 1, 1, 1)  # the diagonal blocks of H^-1_t
    eye = torch.eye(size, dtype=weight.dtype, device=weight.device)
    for turn in range(blocks):
        gone = ~rows.alive[:, ::size]
        factor = torch.linalg.cholesky(torch.where(gone[:, :, None, None], eye, inner))
        y = torch.linalg.solve_triangular(factor, rows.w.reshape(count, -1, size, 1), upper=False)
        lowest, b = (y**2).sum((2, 3)).masked_fill(gone, torch.inf).min(1)
        order[:, turn], losses[:, turn] = rows.column[rows.every, b * size] // size, lowest / 2
        for i in range(size):
            p = b * size + i
            row = rows.remove(p, rows.w[rows.every, p]).reshape(count, -1, size)
            inner -= row[:, :, :, None] * row[:, :, None, :]
        if rows.step >= rows.period and (keep := rows.refresh()) is not None:
            inner = inner[rows.every[:, None], keep[:, ::size] // size]
    return order, losses


def prune_n_of_m(weight: Tensor, hinv: Tensor, n: int, m: int) -> Tensor:
    """As `textbook.prune_n_of_m`."""
    rows = Rows(weight, hinv)
    left = torch.full((len(weight), weight.shape[1] // m), m, device=weight.device)
    for _ in range(weight.shape[1] // m * (m - n)):
        closed = ~rows.alive | (left.gather(1, rows.column // m) <= n)
        p = (rows.w**2 / rows.diagonal).masked_fill(closed, torch.inf).argmin(1)
        left[rows.every, rows.column[rows.every, p] // m] -= 1
        rows.remove(p, rows.w[rows.every, p])
        if rows.step == rows.period:
            rows.refresh()
    return torch.zeros_like(weight).scatter_(1, rows.column, rows.w)


def quantize(weight: Tensor, hinv: Tensor, grid: Grid, fixed: Tensor) -> Tensor:
    """As `textbook.quantize`."""
    rows = Rows(weight, hinv)
    result = torch.zeros_like(weight)
    scale = grid.scale.to(weight.dtype)
    still = fixed.sum(1)
    for turn in range(int(still.max())):  # the columns that stay zero leave H^-1 first, and move nothing
        stays = fixed.gather(1, rows.column) & rows.alive
        rows.remove(stays.to(torch.int8).argmax(1), torch.zeros_like(weight[:, 0]), turn < still)
        if rows.step == rows.period:
            rows.refresh()
    active = weight.shape[1] - still
    for turn in range(int(active.max())):
        near = grid.nearest(rows.w)
        error = ((near - rows.w) ** 2).masked_fill(~rows.alive, -torch.inf)
        farthest = error.argmax(1)
        outlier = error.gather(1, farthest[:, None]) > scale**2 / 4
        score = (error / rows.diagonal).masked_fill(~rows.alive, torch.inf)
        p = torch.where(outlier.squeeze(1), farthest, score.argmin(1))
        acting = turn < active
        to = near[rows.every, p]
        result[rows.every[acting], rows.column[rows.every, p][acting]] = to[acting]
        rows.remove(p, rows.w[rows.every, p] - to, acting)
        if rows.step == rows.period:
            rows.refresh()
    return result
