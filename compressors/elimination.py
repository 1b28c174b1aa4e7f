"""ExactOBS's greedy elimination without updating a d x d inverse per row and step.

After t removals H^-1_t = H^-1 - U^T U, with one row of U per removal (Schur complements add up: it is a pivoted Cholesky
factorisation of H^-1 with the pruning score as the pivot rule). A step needs one row of it and O(d) updates of the weights and
the diagonal. The columns that are left stand packed in front, so that a row costs about d^3 / 6 multiply-adds instead of d^3.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressors import textbook

log = logging.getLogger(__name__)


def eliminate(weight: Tensor, hinv: Tensor) -> tuple[Tensor, Tensor]:
    """As `textbook.eliminate`: weight [rows, d], hinv [d, d], float64 -> order [rows, d] int64 and losses [rows, d] float64,
    on the device of `weight`."""
    kernel = _compiled() if weight.device.type == "cpu" else None
    if kernel is None:
        return textbook.eliminate(weight, hinv)
    order, losses = kernel(weight.contiguous().numpy(), hinv.contiguous().numpy())
    return torch.from_numpy(order), torch.from_numpy(losses)


@functools.cache
def _compiled() -> Callable[[Any, Any], tuple[Any, Any]] | None:
    try:
        import numba
    except ImportError:
        log.warning("numba is not installed (apportion[fast]): layers are compressed by the slow textbook algorithm")
        return None
    compiled: Callable[[Any, Any], tuple[Any, Any]] = numba.njit(parallel=True, cache=True)(_rows(numba.prange))
    return compiled


def _rows(prange: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
    def eliminate_rows(weight: Any, hinv: Any) -> tuple[Any, Any]:
        rows, d = weight.shape
        order = np.empty((rows, d), np.int64)
        losses = np.empty((rows, d))
        for r in prange(rows):
            w = weight[r].copy()
            diagonal = np.diag(hinv).copy()
            column = np.arange(d)  # packed position -> column
            u = np.empty((d, d))
            for step in range(d):
                left = d - step
                best = 0
                lowest = np.inf
                for i in range(left):
                    score = w[i] * w[i] / diagonal[i]
                    if score < lowest or (score == lowest and column[i] < column[best]):
                        best, lowest = i, score
                p = column[best]
                order[r, step] = p
                losses[r, step] = lowest / 2
                # The pivot changes places with the last column that is left, and is out of the way from now on.
                last = left - 1
                pivot, value = diagonal[best], w[best]
                column[best], column[last] = column[last], p
                w[best], diagonal[best] = w[last], diagonal[last]
                for s in range(step):
                    u[s, best], u[s, last] = u[s, last], u[s, best]
                row = u[step]
                for i in range(last):
                    row[i] = hinv[p, column[i]]
                for s in range(step):
                    factor = u[s, last]
                    earlier = u[s]
                    for i in range(last):
                        row[i] -= factor * earlier[i]
                root = np.sqrt(pivot)
                for i in range(last):
                    row[i] /= root
                    w[i] -= row[i] * (value / root)
                    diagonal[i] -= row[i] * row[i]
        return order, losses

    return eliminate_rows
