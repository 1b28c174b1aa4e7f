"""ExactOBS as the paper writes it (Frantar & Alistarh 2022): after every removal each row's whole
inverse Hessian is updated. Slow and plain: the oracle that the fast forms are tested against, and
what runs where no compiler is.

All take weight [rows, d] and hinv [d, d] (H^-1), float64; ties go to the lowest column.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apportion.compressors.grids import Grid


class _Rows:
    """The state of all rows at once: weights w [rows, d], inverses h [rows, d, d], and which
    weights are gone."""

    def __init__(self, weight: Tensor, hinv: Tensor) -> None:
        rows, d = weight.shape
        self.w = weight.clone()
        self.h = hinv.expand(rows, d, d).clone()
        self.every = torch.arange(rows, device=weight.device)
        self.gone = torch.zeros(rows, d, dtype=torch.bool, device=weight.device)

    @property
    def diagonal(self) -> Tensor:
        return self.h.diagonal(dim1=1, dim2=2)

    def remove(self, p: Tensor, to: Tensor, acting: Tensor | None = None) -> None:
        """Set w_p to `to` [rows] in every row that is `acting`; the weights that are left make up
        for it (eq. 3), and H^-1 loses p (lemma 1)."""
        column, pivot = self.h[self.every, :, p], self.diagonal[self.every, p]
        if acting is not None:
            column = column * acting[:, None]
        change = (self.w[self.every, p] - to) / pivot
        moved = self.w - column * change[:, None]
        self.w = torch.where(self.gone, self.w, moved)
        root = column / pivot.sqrt()[:, None]
        self.h.baddbmm_(root[:, :, None], root[:, None, :], alpha=-1)
        rows = self.every if acting is None else self.every[acting]
        p = p[rows]
        self.w[rows, p] = to[rows]
        self.gone[rows, p] = True
        self.h[rows, p, :] = 0
        self.h[rows, :, p] = 0
        self.h[rows, p, p] = 1  # keeps quotients finite; `gone` keeps it from being chosen

    def drop(self, row: int, p: int) -> None:
        """Take a column whose weight is zero out of one row."""
        only = self.every == row
        self.remove(torch.full_like(self.every, p), self.w[:, p].clone(), only)


def eliminate(weight: Tensor, hinv: Tensor) -> tuple[Tensor, Tensor]:
    """Algorithm 1. Returns order [rows, d], int64: the column removed at each step; and losses
    [rows, d]: w_p^2 / (2 [H^-1]_pp), the rise of the layer error at that step."""
    rows = _Rows(weight, hinv)
    order = torch.empty(weight.shape, dtype=torch.int64, device=weight.device)
    losses = torch.empty_like(weight)
    for step in range(weight.shape[1]):
        score = (rows.w**2 / rows.diagonal).masked_fill(rows.gone, torch.inf)
        p = score.argmin(1)
        order[:, step], losses[:, step] = p, score[rows.every, p] / 2
        rows.remove(p, torch.zeros_like(losses[:, 0]))
    return order, losses


def eliminate_blocks(weight: Tensor, hinv: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Algorithm 1 for blocks of `block` consecutive columns: w_b^T [H^-1]_bb^-1 w_b / 2 is what a
    block costs (eq. 5). Returns the order of blocks and their losses, [rows, d / block]."""
    count, d = weight.shape
    rows = _Rows(weight, hinv)
    blocks = d // block
    order = torch.empty(count, blocks, dtype=torch.int64, device=weight.device)
    losses = torch.empty(count, blocks, dtype=weight.dtype, device=weight.device)
    inside = torch.arange(block, device=weight.device)
    for step in range(blocks):
        h = (
            rows.h.reshape(count, blocks, block, blocks, block)
            .diagonal(dim1=1, dim2=3)
            .permute(0, 3, 1, 2)
        )
        w = rows.w.reshape(count, blocks, block)
        score = (w * torch.linalg.solve(h, w)).sum(2).masked_fill(rows.gone[:, ::block], torch.inf)
        b = score.argmin(1)
        order[:, step], losses[:, step] = b, score[rows.every, b] / 2
        for i in inside:
            rows.remove(b * block + i, torch.zeros_like(losses[:, 0]))
    return order, losses


def prune_n_of_m(weight: Tensor, hinv: Tensor, n: int, m: int) -> Tensor:
    """Algorithm 1 with the columns of a group of m closed once n of them are left. Returns the
    weights."""
    count, d = weight.shape
    rows = _Rows(weight, hinv)
    for _ in range(d // m * (m - n)):
        closed = (~rows.gone).reshape(count, d // m, m).sum(2).le(n).repeat_interleave(m, 1)
        score = (rows.w**2 / rows.diagonal).masked_fill(rows.gone | closed, torch.inf)
        rows.remove(score.argmin(1), torch.zeros_like(rows.w[:, 0]))
    return rows.w


def quantize(weight: Tensor, hinv: Tensor, grid: Grid, fixed: Tensor) -> Tensor:
    """Algorithm 3 (OBQ), with the outlier rule: where an active weight is more than half a step
    from the grid, the farthest of these goes first. A step is the widest one of the weight's own
    grid. The columns that are `fixed` [rows, d] are
    zero, stay zero, and compensate for nothing. Returns the weights, all on the grid."""
    rows = _Rows(weight, hinv)
    for r, column in fixed.nonzero():
        rows.drop(int(r), int(column))
    step = grid.steps(weight)
    left = ~fixed
    while left.any():
        acting = left.any(1)
        near = grid.nearest(rows.w)
        error = ((near - rows.w) ** 2).masked_fill(rows.gone, -torch.inf)
        far = error.where(error > step**2 / 4, -torch.inf)
        outlier = far.amax(1) > 0
        score = (error / rows.diagonal).masked_fill(rows.gone, torch.inf)
        p = torch.where(outlier, far.argmax(1), score.argmin(1))
        rows.remove(p, near[rows.every, p], acting)
        left[rows.every, p] = False
    return rows.w
