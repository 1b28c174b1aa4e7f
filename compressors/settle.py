"""Quantized weights from several eliminations: each settles by coordinate descent, and every row
takes the best. A row's own order is best in most convolutions, the one from the greatest inputs
down in language models, whose inputs differ a thousandfold (docs/ALGORITHMS.md, "When is the exact
order worth it?")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from apportion.compressors.elimination import dispatch
from apportion.compressors.elimination.dispatch import Limits
from apportion.compressors.elimination.work import precision
from apportion.compressors.grids import Grid


def settle(
    weight: Tensor,
    starts: Sequence[Tensor],
    hessian: Tensor,
    grid: Grid,
    fixed: Tensor,
    damping: float,
    limits: Limits,
) -> Tensor:
    """Of every row the start that ends best.

    Args:
        weight: [rows, d], what errors are measured against.
        starts: [rows, d] each, on the grid.
        hessian: [groups, d, d]; rows go to the groups in equal shares.
        grid: of each row, of all, or of groups of columns.
        fixed: bool [rows, d], weights that stay as they are.
        damping: share of the mean diagonal that is added to the diagonal.
        limits: of memory and threads.

    Returns:
        Weights [rows, d], on the grid; no row's error 1/2 (q - w) H (q - w)^T, damped, is above
        that of any start.
    """
    each, made = len(weight) // len(hessian), []
    for index, own in enumerate(hessian):
        rows = slice(index * each, (index + 1) * each)
        h = own.to(precision(own.shape[1]))
        h = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype, device=h.device)
        w, some = weight[rows].to(h.dtype), grid.rows(rows)
        ends = [
            dispatch.descend(w, start[rows].to(h.dtype), h, some, fixed[rows], limits)
            for start in starts
        ]
        errors = torch.stack([(((end - w) @ h) * (end - w)).sum(1) for end in ends])
        best = errors.argmin(0)
        made.append(torch.stack(ends)[best, torch.arange(len(w), device=w.device)])
    return torch.cat(made)
