"""ExactOBS: one layer at all its levels (Frantar & Alistarh 2022, "Optimal Brain Compression")."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressors.elimination import eliminate
from compressors.errors import LayerError, LevelError
from compressors.hessian import inverse
from compressors.layers import LayerSpec, from_matrix, to_matrix
from compressors.levels import Level

_CHUNK_BYTES = 1 << 29
"""Per-row d x d factors held at once while weights are reconstructed."""


@dataclass(frozen=True, slots=True)
class CompressionOptions:
    """`damping`: share of the mean diagonal added to each Hessian's diagonal."""

    damping: float = 0.0


@dataclass(frozen=True, slots=True)
class CompressedLayer:
    """One layer at one level. `weight`: float32, the layer's own shape; `error` = 1/2 tr(dW H dW^T) in float64, and
    `normalized_error` the same over 1/2 tr(W H W^T): lower is better, 0 for dense."""

    level: Level
    weight: Tensor
    error: float
    normalized_error: float


def check_level(level: Level) -> None:
    """Raise LevelError for a level that no compressor makes yet."""
    if level.quantization is not None or (level.sparsity is not None and level.sparsity.kind != "unstr"):
        raise LevelError(str(level), "this version compresses to unstructured sparsity alone: dense, unstr-S, mag:unstr-S")


def compress_layer(
    weight: Tensor, spec: LayerSpec, hessian: Tensor, levels: Sequence[Level], options: CompressionOptions | None = None
) -> Iterator[CompressedLayer]:
    """Yield `weight` [rows, ...] compressed to each of `levels` that fits the layer, in order. hessian: [groups, d, d] as
    `hessian.collect_hessians` gives it. Raises LayerError for values that are not finite, LevelError."""
    options = options or CompressionOptions()
    for level in levels:
        check_level(level)
    matrix = to_matrix(weight.detach().double(), spec)
    if not torch.isfinite(matrix).all():
        raise LayerError(spec.name, "its weights hold NaN or infinity")
    if not torch.isfinite(hessian).all():
        raise LayerError(spec.name, "its Hessian holds NaN or infinity")
    hessian = hessian.double()
    whole = layer_error(matrix, hessian)
    made: _Unstructured | None = None
    for level in levels:
        if level.sparsity is None:
            compressed = matrix
        else:
            # Rounded up, as the published code does; round() takes off what the fraction's binary form adds.
            count = math.ceil(round(spec.rows * spec.columns * level.sparsity.fraction, 6))
            if level.sparsity.magnitude:
                compressed = _by_magnitude(matrix, count)
            else:
                made = made or _Unstructured(matrix, hessian, spec, options)
                compressed = made.without(count)
        stored = compressed.float()
        error = layer_error(stored.double() - matrix.float().double(), hessian)
        normalized = error / whole if whole > 0 else 0.0
        yield CompressedLayer(level, from_matrix(stored, spec).cpu(), error, normalized)


def layer_error(difference: Tensor, hessian: Tensor) -> float:
    """1/2 tr(dW H dW^T) over all groups; difference [rows, d], hessian [groups, d, d], float64. For H = 2 X X^T / N it is the
    mean over samples of the squared change of the layer's output."""
    groups = hessian.shape[0]
    split = difference.reshape(groups, -1, difference.shape[1])
    return 0.5 * float(((split @ hessian) * split).sum())


def _by_magnitude(matrix: Tensor, count: int) -> Tensor:
    """The `count` smallest weights of the layer set to zero; ties go to the lowest index."""
    flat = matrix.flatten().clone()
    flat[flat.abs().argsort(stable=True)[:count]] = 0
    return flat.reshape(matrix.shape)


class _Unstructured:
    """All unstructured levels of a layer from one elimination.

    With P = H^-1[order][:, order] = L L^T and y = L^-1 w[order], the weights after c removals are w[order] - L[:, :c] y[:c]: one
    Cholesky factorisation per row gives every level, without a trace of weights.
    """

    def __init__(self, matrix: Tensor, hessian: Tensor, spec: LayerSpec, options: CompressionOptions) -> None:
        self._matrix = matrix
        self._groups: list[tuple[slice, Tensor, Tensor, Tensor]] = []
        losses = torch.full_like(matrix, -1.0)  # dead columns: gone before anything that costs
        per_group = spec.rows // spec.groups
        for g in range(spec.groups):
            rows = slice(g * per_group, (g + 1) * per_group)
            hinv, alive = inverse(hessian[g], options.damping, spec.name)
            columns = alive.nonzero().squeeze(1)
            order, lost = eliminate(matrix[rows][:, columns], hinv)
            losses[rows, len(alive) - len(columns) :] = lost
            self._groups.append((rows, hinv, columns, order))
        self._row_by_loss = losses.flatten().argsort(stable=True) // matrix.shape[1]

    def without(self, count: int) -> Tensor:
        """The layer's weights, [rows, d], after the `count` cheapest removals over all rows."""
        rows, d = self._matrix.shape
        counts = torch.bincount(self._row_by_loss[:count], minlength=rows)
        result = self._matrix.clone()
        for where, hinv, columns, order in self._groups:
            dead = d - len(columns)
            result[where] = self._group_without(self._matrix[where], hinv, columns, order, counts[where], dead)
        return result

    def _group_without(self, w: Tensor, hinv: Tensor, columns: Tensor, order: Tensor, counts: Tensor, dead: int) -> Tensor:
        result = w.clone()
        if dead:
            is_dead = torch.ones(w.shape[1], dtype=torch.bool, device=w.device)
            is_dead[columns] = False
            rank = is_dead.cumsum(0) - 1  # dead columns go in order of their index
            result[is_dead & (rank < counts[:, None])] = 0
        left = (counts - dead).clamp(min=0)
        d = len(columns)
        step = max(1, _CHUNK_BYTES // max(1, 8 * d * d))
        for start in range(0, len(w), step):
            chunk = slice(start, start + step)
            most = int(left[chunk].max()) if d else 0
            if not most:
                continue
            sequence = order[chunk]
            p = hinv[sequence[:, :most, None], sequence[:, None, :most]]
            below = hinv[sequence[:, most:, None], sequence[:, None, :most]]
            factor = torch.linalg.cholesky(p)
            ordered = w[chunk][:, columns].gather(1, sequence)
            y = torch.linalg.solve_triangular(factor, ordered[:, :most, None], upper=False)
            gone = torch.arange(most, device=w.device) < left[chunk, None]
            y = y * gone[:, :, None]
            # Rows of L below the pivots: L21 = P21 L11^-T, so that L21 y = P21 (L11^-T y).
            change = torch.cat([factor @ y, below @ torch.linalg.solve_triangular(factor.mT, y, upper=True)], 1)
            ordered = ordered - change.squeeze(2)
            ordered[:, :most].masked_fill_(gone, 0)
            alive = torch.empty_like(ordered).scatter_(1, sequence, ordered)
            result[chunk] = result[chunk].index_copy(1, columns, alive)
        return result
