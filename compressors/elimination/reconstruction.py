"""The weights that rows of a layer have after some of their removals, in compiled loops. Importing
this needs numba.

With P = H^-1[order][:, order] = L L^T and y = L^-1 w[order], the weights after c removals are
w[order] - L[:, :c] y[:c]: a Cholesky factorisation whose columns are subtracted as they come, so
that the weights in between cost nothing more."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from apportion.compressors.elimination import panels, tile
from apportion.compressors.elimination.compiled import compiled
from apportion.compressors.elimination.panels import fold, place, size, subtract, whole
from apportion.compressors.elimination.tile import BYTES

_PANEL = 96
"""Columns of L between two updates of what is right of them: whole tiles of every machine and
type."""


@njit(error_model="numpy")
def _reconstruct(
    own: Any, u: Any, factor: Any, weight: Any, hinv: Any, order: Any, counts: Any, result: Any
) -> None:
    """result [levels, d], zeros before."""
    d, width = len(weight), BYTES // u.itemsize
    m, most = whole(d, weight), counts.max()
    end = whole(most, weight)
    w = np.zeros(m, weight.dtype)
    for i in range(d):
        w[i] = weight[order[i]]
    for i in range(d):
        source = hinv[order[i]]
        for j in range(0, min(end, i + 1), width):
            start = place(i, j, m, width)
            for c in range(min(width, d - j)):
                own[start + c] = source[order[j + c]]
    for level in range(len(counts)):
        if counts[level] == 0:
            result[level] = weight
    for t in range(most):
        k, first = t % _PANEL, t // width * width
        row = u[k * m : (k + 1) * m]
        start = place(0, t, m, width)
        for i in range(t, m):
            row[i] = own[start + i * width]
        subtract(u, k, t, first, factor, m)
        root = np.sqrt(row[t])
        scale = weight.dtype.type(1) / root
        y = w[t] * scale
        for i in range(t, m):
            row[i] *= scale
            w[i] -= row[i] * y
        for level in range(len(counts)):
            if counts[level] == t + 1:
                for i in range(t + 1, d):
                    result[level, order[i]] = w[i]
        if k == _PANEL - 1:
            fold(own, u, _PANEL, t + 1, end, m)


@compiled(panels, tile)
def reconstruct(weight: Any, hinv: Any, order: Any, counts: Any, threads: int) -> Any:
    """The weights between an elimination's removals, by one Cholesky factorisation of H^-1 in the
    order of the removals.

    Args:
        weight: [rows, d].
        hinv: H^-1, [d, d].
        order: int64 [rows, d], columns in the order in which they go.
        counts: int64 [rows, levels], how many of them are gone at each level.
        threads: of the CPU.

    Returns:
        float32 [levels, rows, d]; NaN where the type's precision does not do.
    """
    rows, d = weight.shape
    result = np.zeros((counts.shape[1], rows, d), np.float32)
    m = whole(d, weight)
    for t in prange(threads):
        own = np.zeros(size(m, weight), weight.dtype)
        u, factor = np.zeros(_PANEL * m, weight.dtype), np.empty(_PANEL, weight.dtype)
        for r in range(t, rows, threads):
            _reconstruct(own, u, factor, weight[r], hinv, order[r], counts[r], result[:, r])
    return result
