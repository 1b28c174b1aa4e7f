"""One layer's levels by GPTQ and SparseGPT: eliminations in one order for all rows, damped as
theirs are."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from apportion.compressors.elimination import fixed
from apportion.compressors.elimination.fixed import Refit
from apportion.compressors.elimination.work import precision
from apportion.compressors.grids import Grid, joined
from apportion.compressors.hessian import inverse
from apportion.compressors.levels import Sparsity

DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal, or more where the job asks for more
(GPTQ, section 3.3, step 3; the same in SparseGPT's code)."""

Order = Literal["columns", "descending"]
"""Of the columns as they stand, or from the greatest diagonal of H down (the published code's
--act-order)."""


class _Group(NamedTuple):
    """Of the rows of one group: U of H^-1 in that order, the order [d] and its inverse, and the
    columns that are alive [d]."""

    upper: Tensor
    order: Tensor
    back: Tensor
    alive: Tensor


class InOrder:
    """hessian [groups, d, d] of a layer called `name`; rows of weights [rows, d] go to its groups
    in equal shares. A dead column has the identity's row and column, and its weights are zero."""

    def __init__(self, hessian: Tensor, order: Order, damping: float, name: str) -> None:
        d = hessian.shape[1]
        self._groups = []
        for own in hessian:
            found, alive = inverse(own, max(DAMPING, damping), name)
            whole = torch.eye(d, dtype=found.dtype, device=found.device)
            columns = alive.nonzero().squeeze(1)
            whole[columns[:, None], columns] = found
            at = torch.arange(d, device=own.device)
            if order == "descending":
                at = own.diagonal().argsort(descending=True, stable=True)
            upper = fixed.factor(whole[at[:, None], at]).to(precision(d))
            self._groups.append(_Group(upper, at, at.argsort(), alive))

    def quantize(
        self, weight: Tensor, grid: Grid, zeros: Tensor, refit: Refit | None
    ) -> tuple[Tensor, Grid]:
        """Weights onto the grid.

        Args:
            weight: [rows, d].
            grid: of its rows, of all, or of groups of columns.
            zeros: bool [rows, d], weights that stay zero.
            refit: gives groups of columns their scales as they come; of the order of the columns
                alone.

        Returns:
            Weights [rows, d], and the grid that they lie on.
        """
        made, grids = [], []
        for group, rows in self._rows(weight):
            own, at = grid.rows(rows), group.order.expand(rows.stop - rows.start, -1)
            w = (weight[rows] * group.alive).to(group.upper.dtype)[:, group.order]
            if refit is None:
                own = own.at(at)
            result, own = fixed.quantize(w, group.upper, own, zeros[rows][:, group.order], refit)
            made.append(result[:, group.back])
            grids.append(grid.rows(rows) if refit is None else own)
        return torch.cat(made), joined(grids)

    def prune(self, weight: Tensor, sparsity: Sparsity) -> Tensor:
        """Weights [rows, d] -> with the pattern of `sparsity`, unstructured or N:M, in the order of
        the columns; every group loses the same share."""
        made = []
        for group, rows in self._rows(weight):
            w = (weight[rows] * group.alive).to(group.upper.dtype)
            made.append(
                fixed.prune_n_of_m(w, group.upper, sparsity.n, sparsity.m)
                if sparsity.kind == "nm"
                else fixed.prune(w, group.upper, sparsity.removed(w.numel()))
            )
        return torch.cat(made)

    def _rows(self, weight: Tensor) -> list[tuple[_Group, slice]]:
        each = len(weight) // len(self._groups)
        return [(g, slice(i * each, (i + 1) * each)) for i, g in enumerate(self._groups)]
