"""The compiled loop of ExactOBS's quantization where scales change along a row, or codes stand for
the values of a codebook. `kernels.quantize` is the faster one of grids per row. Importing this
needs numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from apportion.compressors.elimination import panels, removal, tile
from apportion.compressors.elimination.compiled import compiled


@njit(error_model="numpy")
def nearest(w: Any, scale: Any, zero: Any, highest: Any) -> Any:
    """w to scale (code - zero)."""
    code = np.rint(w / scale) + zero
    code = code if code > 0 else type(code)(0)
    return scale * ((code if code < highest else highest) - zero)


@njit(error_model="numpy")
def looked_up(w: Any, scale: Any, bounds: Any, values: Any) -> Any:
    """w to scale times a value of a codebook."""
    ratio, low, high = w / scale, 0, len(bounds)
    while low < high:
        middle = (low + high) // 2
        if bounds[middle] < ratio:
            low = middle + 1
        else:
            high = middle
    return scale * values[low]


@njit(error_model="numpy")
def _round(near: Any, w: Any, s: Any, z: Any, m: int, highest: Any, book: Any) -> None:
    """near [m]: what the weights w [m] would be set to."""
    bounds, values = book
    if len(values):
        for i in range(m):
            near[i] = looked_up(w[i], s[i], bounds, values)
    else:
        for i in range(m):
            near[i] = nearest(w[i], s[i], z[i], highest)


@njit(error_model="numpy")
def _spread(s: Any, z: Any, scale: Any, zero: Any, column: Any, m: int, group: int) -> None:
    """Scale and zero of every place."""
    for i in range(m):
        s[i], z[i] = scale[column[i] // group], zero[column[i] // group]


@njit(error_model="numpy")
def _quantize(
    space: Any, weight: Any, fixed: Any, hinv: Any, scale: Any, zero: Any, group: int,
    highest: Any, book: Any, spacing: Any, result: Any,
) -> None:  # fmt: skip
    w, diagonal, penalty, column = state = removal.begin(weight, hinv)
    m, step, period, owned = len(w), 0, removal.period(len(w)), False
    score, nearness, near = np.empty(m, w.dtype), np.empty(m, w.dtype), np.empty(m, w.dtype)
    s, z = np.empty(m, w.dtype), np.empty(m, w.dtype)
    _spread(s, z, scale, zero, column, m, group)
    taken = 0
    for _ in range(len(weight)):
        while taken < len(weight) and not fixed[taken]:
            taken += 1
        if taken < len(weight):  # the columns that stay zero leave H^-1 first, and move nothing
            best = 0
            while penalty[best] != 0 or column[best] < taken:
                best += 1
            taken += 1
            to = w.dtype.type(0)
        else:
            _round(near, w, s, z, m, highest, book)
            for i in range(m):
                error = near[i] - w[i]
                error *= error
                score[i] = error / diagonal[i] + penalty[i]
                width = s[i] * spacing
                out = penalty[i] == 0 and error > width * width / 4
                nearness[i] = -error if out else w.dtype.type(0)
            best = removal.lowest(nearness, m)
            if nearness[best] == 0:  # no outlier
                best = removal.lowest(score, m)
            to = near[best]
        result[column[best]] = to
        removal.remove(best, step, w[best] - to, m, owned, hinv, space, state)
        step += 1
        if step == period:
            m = removal.refresh(step, m, owned, hinv, space, state)
            step, period, owned = 0, removal.period(m), True
            _spread(s, z, scale, zero, column, m, group)


@compiled(removal, panels, tile)
def quantize(
    weight: Any, fixed: Any, hinv: Any, scales: Any, zeros: Any, group: int, highest: Any,
    book: Any, spacing: Any, threads: int,
) -> Any:  # fmt: skip
    """Weights on their grids, in the order of least loss.

    Args:
        weight: [rows, d].
        fixed: bool [rows, d], weights that are zero and stay it.
        hinv: H^-1, [d, d].
        scales: [rows, groups], steps of the grids.
        zeros: [rows, groups], codes of zero.
        group: columns that share a scale.
        highest: the highest code.
        book: bounds [n - 1] and values [n] of a codebook, or two empty arrays.
        spacing: the widest step, in scales.
        threads: of the CPU.

    Returns:
        An array like `weight`.
    """
    result = np.empty_like(weight)
    for t in prange(threads):
        space = removal.room(weight, 0)
        for r in range(t, len(weight), threads):
            _quantize(
                space, weight[r], fixed[r], hinv, scales[r], zeros[r], group, highest, book,
                spacing, result[r],
            )  # fmt: skip
    return result
