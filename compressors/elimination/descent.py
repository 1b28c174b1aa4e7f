"""Coordinate descent on a grid: the weights of a row, one after the other, go to the code that is
best while the others stay, until none moves (Nair and Suggala 2024, "CDQuant"; here cyclic, from
what an elimination has found). The error never rises, and what is left has no better neighbour."""

from __future__ import annotations

import torch
from torch import Tensor

from apportion.compressors.grids import Grid

PASSES = 12
"""Over all columns, at most: later ones move few weights, and gain less than 1 %."""
_BATCH = 128


def descend(weight: Tensor, start: Tensor, hessian: Tensor, grid: Grid, fixed: Tensor) -> Tensor:
    """The least 1/2 (q - w) H (q - w)^T of each row that single moves lead to.

    Args:
        weight: [rows, d], w.
        start: [rows, d], on the grid.
        hessian: [d, d]; columns of which the diagonal is zero stay as they are.
        grid: of each row, of all, or of groups of columns.
        fixed: bool [rows, d], weights that stay as they are.

    Returns:
        q, [rows, d], on the grid.
    """
    q, d = start.clone(), weight.shape[1]
    every = torch.arange(d, device=weight.device)
    slope, diagonal = (q - weight) @ hessian, hessian.diagonal()
    alive = (diagonal > 0).tolist()
    for _ in range(PASSES):
        before = q.clone()
        for first in range(0, d, _BATCH):
            here = slice(first, min(d, first + _BATCH))
            own = slope[:, here].clone()
            for i in range(first, here.stop):
                if not alive[i]:
                    continue
                now, rise = q[:, i], own[:, i - first]
                at = grid.at(every[i].expand(len(weight), 1))
                move = at.nearest((now - rise / diagonal[i])[:, None])[:, 0] - now
                gains = (move * (rise + move * diagonal[i] / 2) < 0) & ~fixed[:, i]
                move = move * gains
                q[:, i] += move
                own.addr_(move, hessian[i, here])
            slope += (q[:, here] - before[:, here]) @ hessian[here]
        if torch.equal(q, before):
            break
    return q
