"""A table's rows (an embedding's) at all levels. What reaches a row reaches no other, so that
nothing can make up for a weight that goes: what costs least goes, and the rest is rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from apportion.compressors import magnitude
from apportion.compressors.grids import Grid, GridOptions, fit_weights
from apportion.compressors.levels import Level, Sparsity


class TableProblem:
    """matrix [rows, d]; hessian [rows, 1]: twice how often a row is taken per sample, both float64.
    A row that calibration never took counts as if it were the rarest one: other data may take
    it."""

    def __init__(self, matrix: Tensor, hessian: Tensor, grid: GridOptions) -> None:
        self.matrix, self.hessian, self._grid = matrix, hessian, grid
        taken = hessian[hessian > 0]
        least = float(taken.min()) if len(taken) else 1.0
        self._scale = hessian.clamp(min=least).sqrt()

    def weights(self, level: Level) -> tuple[Tensor, Grid | None]:
        """What is stored, float32 [rows, d], and its grid."""
        kept = self.matrix if level.sparsity is None else self.matrix * self._mask(level.sparsity)
        quantization = level.quantization
        if quantization is None or quantization.weight_bits is None:
            return kept.float(), None
        grid = fit_weights(kept, quantization, self._grid)
        there = torch.ones_like(kept, dtype=torch.bool) if level.sparsity is None else kept != 0
        return grid.values(grid.codes(kept)) * there, grid

    def _mask(self, sparsity: Sparsity) -> Tensor:
        """1 for what stays."""
        costs = self.matrix if sparsity.magnitude else self.matrix * self._scale
        if sparsity.kind == "nm":
            return magnitude.prune_n_of_m(costs, sparsity.n, sparsity.m) != 0
        size = {"filter": costs.shape[1], "block": sparsity.block}.get(sparsity.kind, 1)
        count = sparsity.removed(costs.numel() // size)
        return magnitude.prune_blocks(costs, size, count) != 0
