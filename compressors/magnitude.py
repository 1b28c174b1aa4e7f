"""The data-free baselines of pruning: what is smallest goes, and nothing makes up for it."""

from __future__ import annotations

from torch import Tensor


def prune_blocks(matrix: Tensor, size: int, count: int) -> Tensor:
    """`matrix` [rows, d] with the `count` blocks of `size` consecutive values of least norm set to
    zero, over all rows; ties go to the lowest index. d is a multiple of `size`."""
    blocks = matrix.reshape(-1, size).clone()
    blocks[(blocks**2).sum(1).argsort(stable=True)[:count]] = 0
    return blocks.reshape(matrix.shape)


def prune_n_of_m(matrix: Tensor, n: int, m: int) -> Tensor:
    """`matrix` [rows, d] with the n largest of every m consecutive values kept, the others set to
    zero. d is a multiple of m."""
    groups = matrix.reshape(-1, m).clone()
    gone = groups.abs().argsort(dim=1, stable=True)[:, : m - n]
    return groups.scatter_(1, gone, 0.0).reshape(matrix.shape)
