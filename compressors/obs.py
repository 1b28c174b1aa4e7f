"""ExactOBS: one layer at all its levels (Frantar & Alistarh 2022, "Optimal Brain Compression")."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressors.elimination import eliminate, eliminate_blocks, prune_n_of_m, quantize
from compressors.errors import LayerError, LevelError
from compressors.grids import Grid, fit_grid
from compressors.hessian import inverse
from compressors.layers import LayerSpec, from_matrix, to_matrix
from compressors.levels import Level, Sparsity

_CHUNK_BYTES = 1 << 29
"""Per-row d x d factors held at once while weights are reconstructed."""


@dataclass(frozen=True, slots=True)
class CompressionOptions:
    """`damping`: share of the mean diagonal added to each Hessian's diagonal."""

    damping: float = 0.0


@dataclass(frozen=True, slots=True)
class CompressedLayer:
    """One layer at one level. `weight`: float32, the layer's own shape; `error` = 1/2 tr(dW H dW^T) in float64, and
    `normalized_error` the same over 1/2 tr(W H W^T): lower is better, 0 for dense. `grid`: of a quantized level, per row."""

    level: Level
    weight: Tensor
    error: float
    normalized_error: float
    grid: Grid | None = None


def check_level(level: Level) -> None:
    """Raise LevelError for a level that no compressor makes yet."""
    if level.sparsity is not None and level.sparsity.kind == "filter":
        raise LevelError(str(level), "structured (filter) levels are not made yet")
    if level.quantization is not None and level.quantization.activation_bits is not None:
        raise LevelError(str(level), "activation quantization is not made yet; weight bits alone (wB) are")


def fits(spec: LayerSpec, level: Level) -> bool:
    """Whether the layer can have the level: blocks and N:M patterns need rows that they divide."""
    sparsity = level.sparsity
    return sparsity is None or spec.columns % {"block": sparsity.block, "nm": sparsity.m}.get(sparsity.kind, 1) == 0


def compress_layer(
    weight: Tensor, spec: LayerSpec, hessian: Tensor, levels: Sequence[Level], options: CompressionOptions | None = None
) -> Iterator[CompressedLayer]:
    """Yield `weight` [rows, ...] compressed to each of `levels` that fits the layer, in order. hessian: [groups, d, d] as
    `hessian.collect_hessians` gives it. Raises LayerError for values that are not finite, LevelError."""
    for level in levels:
        check_level(level)
    matrix = to_matrix(weight.detach().double(), spec)
    if not torch.isfinite(matrix).all():
        raise LayerError(spec.name, "its weights hold NaN or infinity")
    if not torch.isfinite(hessian).all():
        raise LayerError(spec.name, "its Hessian holds NaN or infinity")
    problem = _Problem(matrix, hessian.double(), spec, options or CompressionOptions())
    whole = layer_error(matrix, problem.hessian)
    for level in levels:
        if not fits(spec, level):
            continue
        compressed = matrix if level.sparsity is None else problem.sparse(level.sparsity)
        grid = None
        if level.quantization is not None:
            assert level.quantization.weight_bits is not None  # check_level
            grid = fit_grid(compressed, level.quantization.weight_bits)
            kept = compressed != 0
            if not level.quantization.nearest:
                compressed = problem.quantize(compressed, grid, masked=level.sparsity is not None)
            stored = grid.values(grid.codes(compressed)) * (kept if level.sparsity else 1)
        else:
            stored = compressed.float()
        error = layer_error(stored.double() - matrix.float().double(), problem.hessian)
        yield CompressedLayer(level, from_matrix(stored, spec).cpu(), error, error / whole if whole > 0 else 0.0, grid)


def layer_error(difference: Tensor, hessian: Tensor) -> float:
    """1/2 tr(dW H dW^T) over all groups; difference [rows, d], hessian [groups, d, d], float64. For H = 2 X X^T / N it is the
    mean over samples of the squared change of the layer's output."""
    groups = hessian.shape[0]
    split = difference.reshape(groups, -1, difference.shape[1])
    return 0.5 * float(((split @ hessian) * split).sum())


class _Problem:
    """One layer and what its levels share: an elimination run gives all levels of its kind."""

    def __init__(self, matrix: Tensor, hessian: Tensor, spec: LayerSpec, options: CompressionOptions) -> None:
        self.matrix, self.hessian, self._spec, self._options = matrix, hessian, spec, options
        self._ladders: dict[int, _Ladder] = {}
        self._inverses: dict[int, tuple[Tensor, Tensor]] = {}

    def sparse(self, sparsity: Sparsity) -> Tensor:
        """The weights [rows, d] with the pattern of `sparsity`."""
        if sparsity.kind == "nm":
            if sparsity.magnitude:
                return _n_of_m_by_magnitude(self.matrix, sparsity.n, sparsity.m)
            parts = [prune_n_of_m(w, hinv, sparsity.n, sparsity.m) for w, hinv in self._groups(self.matrix)]
            return torch.cat(parts)
        size = sparsity.block or 1
        # Rounded up, as the published code does; round() takes off what the fraction's binary form adds.
        count = math.ceil(round(self.matrix.numel() / size * sparsity.fraction, 6))
        if sparsity.magnitude:
            return _by_magnitude(self.matrix, size, count)
        if size not in self._ladders:
            self._ladders[size] = _Ladder(self.matrix, list(self._groups(self.matrix)), size)
        return self._ladders[size].without(count)

    def quantize(self, matrix: Tensor, grid: Grid, masked: bool) -> Tensor:
        """OBQ of weights [rows, d]. Where they are `masked`, zeros stay zeros, and only the weights that are left compensate."""
        result = torch.zeros_like(matrix)
        per_group = len(matrix) // self._spec.groups
        for g, (w, hinv) in enumerate(self._groups(matrix)):
            rows = torch.arange(g * per_group, (g + 1) * per_group)
            full = ((w != 0) | ~self._inverse(g)[1] | (not masked)).all(1)
            if full.any():
                result[rows[full]] = quantize(w[full], hinv, _rows_of(grid, rows[full]))
            for row in (~full).nonzero().squeeze(1):
                left = w[row].nonzero().squeeze(1)
                if len(left):
                    inverse_left = _inverse_of(hinv, left)
                    result[rows[row], left] = quantize(w[row, left][None], inverse_left, _rows_of(grid, rows[row, None]))[0]
        return result

    def _groups(self, matrix: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Weights [rows of the group, d] and H^-1 [d, d] of every group. A dead column has the identity's row and column, and
        its weights are zero: it costs nothing and changes nothing."""
        per_group = len(matrix) // self._spec.groups
        for g in range(self._spec.groups):
            hinv, alive = self._inverse(g)
            yield matrix[g * per_group : (g + 1) * per_group] * alive, hinv

    def _inverse(self, group: int) -> tuple[Tensor, Tensor]:
        if group not in self._inverses:
            found, alive = inverse(self.hessian[group], self._options.damping, self._spec.name)
            whole = torch.eye(len(alive), dtype=found.dtype, device=found.device)
            columns = alive.nonzero().squeeze(1)
            whole[columns[:, None], columns] = found
            self._inverses[group] = (whole, alive)
        return self._inverses[group]


class _Ladder:
    """All unstructured levels (size 1) or all levels of one block size, from one elimination.

    With P = H^-1[order][:, order] = L L^T and y = L^-1 w[order], the weights after c removals are w[order] - L[:, :c] y[:c]: one
    Cholesky factorisation per row gives every level, without a trace of weights.
    """

    def __init__(self, matrix: Tensor, groups: list[tuple[Tensor, Tensor]], size: int) -> None:
        self._groups, self._size = groups, size
        self._orders: list[Tensor] = []
        losses = []
        for w, hinv in groups:
            order, lost = eliminate(w, hinv) if size == 1 else eliminate_blocks(w, hinv, size)
            losses.append(lost)
            self._orders.append(order)
        self._row_by_loss = torch.cat(losses).flatten().argsort(stable=True) // losses[0].shape[1]
        self._shape = matrix.shape

    def without(self, count: int) -> Tensor:
        """The layer's weights, [rows, d], after the `count` cheapest removals (of blocks) over all rows."""
        counts = torch.bincount(self._row_by_loss[:count], minlength=self._shape[0]) * self._size
        inside = torch.arange(self._size)
        parts, start = [], 0
        for (w, hinv), order in zip(self._groups, self._orders, strict=True):
            sequence = (order[:, :, None] * self._size + inside).flatten(1)
            parts.append(_reconstruct(w, hinv, sequence, counts[start : start + len(w)]))
            start += len(w)
        return torch.cat(parts)


def _reconstruct(w: Tensor, hinv: Tensor, sequence: Tensor, counts: Tensor) -> Tensor:
    """Weights [rows, d] after the first counts[r] columns of sequence[r] are gone, the others at their optimum."""
    result = w.clone()
    d = w.shape[1]
    step = max(1, _CHUNK_BYTES // (8 * d * d))
    for start in range(0, len(w), step):
        chunk = slice(start, start + step)
        most = int(counts[chunk].max())
        if not most:
            continue
        order = sequence[chunk]
        p = hinv[order[:, :most, None], order[:, None, :most]]
        below = hinv[order[:, most:, None], order[:, None, :most]]
        factor = torch.linalg.cholesky(p)
        ordered = w[chunk].gather(1, order)
        y = torch.linalg.solve_triangular(factor, ordered[:, :most, None], upper=False)
        gone = torch.arange(most, device=w.device) < counts[chunk, None]
        y = y * gone[:, :, None]
        # Rows of L below the pivots: L21 = P21 L11^-T, so that L21 y = P21 (L11^-T y).
        change = torch.cat([factor @ y, below @ torch.linalg.solve_triangular(factor.mT, y, upper=True)], 1)
        ordered = ordered - change.squeeze(2)
        ordered[:, :most].masked_fill_(gone, 0)
        result[chunk] = torch.empty_like(ordered).scatter_(1, order, ordered)
    return result


def _inverse_of(hinv: Tensor, left: Tensor) -> Tensor:
    """The inverse of H restricted to the columns `left`: the Schur complement of the others in H^-1."""
    gone = torch.ones(len(hinv), dtype=torch.bool)
    gone[left] = False
    removed = gone.nonzero().squeeze(1)
    if not len(removed):
        return hinv
    across = hinv[left][:, removed]
    return hinv[left][:, left] - across @ torch.linalg.solve(hinv[removed][:, removed], across.T)


def _rows_of(grid: Grid, rows: Tensor) -> Grid:
    return Grid(grid.scale[rows], grid.zero[rows], grid.bits)


def _by_magnitude(matrix: Tensor, size: int, count: int) -> Tensor:
    """The `count` blocks of least norm set to zero; ties go to the lowest index."""
    blocks = matrix.reshape(-1, size).clone()
    blocks[(blocks**2).sum(1).argsort(stable=True)[:count]] = 0
    return blocks.reshape(matrix.shape)


def _n_of_m_by_magnitude(matrix: Tensor, n: int, m: int) -> Tensor:
    groups = matrix.reshape(-1, m).clone()
    gone = groups.abs().argsort(dim=1, stable=True)[:, : m - n]
    return groups.scatter_(1, gone, 0.0).reshape(matrix.shape)
