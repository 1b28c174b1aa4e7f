"""The compiled loop of `descent`: a weight that stays costs nothing, one that moves d operations.
Importing this needs numba."""

from __future__ import annotations

from typing import Any

from numba import njit, prange

from apportion.compressors.elimination import grouped
from apportion.compressors.elimination.compiled import compiled


@njit(error_model="numpy")
def _descend(
    q: Any, slope: Any, fixed: Any, hessian: Any, scale: Any, zero: Any, group: int, highest: Any,
    book: Any, passes: int,
) -> None:  # fmt: skip
    bounds, values = book
    for _ in range(passes):
        moved = False
        for j in range(len(q)):
            width = hessian[j, j]
            if fixed[j] or width <= 0:
                continue
            s, to = scale[j // group], q[j] - slope[j] / width
            if len(values):
                near = grouped.looked_up(to, s, bounds, values)
            else:
                near = grouped.nearest(to, s, zero[j // group], highest)
            move = near - q[j]
            if move * (slope[j] + move * width / 2) < 0:
                q[j], moved = near, True
                for i in range(len(q)):
                    slope[i] += move * hessian[j, i]
        if not moved:
            break


@compiled(grouped)
def descend(
    start: Any, slopes: Any, fixed: Any, hessian: Any, scales: Any, zeros: Any, group: int,
    highest: Any, book: Any, passes: int, threads: int,
) -> Any:  # fmt: skip
    """As `descent.descend`.

    Args:
        start: [rows, d], on the grid.
        slopes: [rows, d], (q - w) H of the start; what becomes of it is of no use.
        fixed: bool [rows, d], weights that stay as they are.
        hessian: [d, d].
        scales: [rows, groups], steps of the grids.
        zeros: [rows, groups], codes of zero.
        group: columns that share a scale.
        highest: the highest code.
        book: bounds [n - 1] and values [n] of a codebook, or two empty arrays.
        passes: over all columns, at most.
        threads: of the CPU.

    Returns:
        An array like `start`.
    """
    result = start.copy()
    for t in prange(threads):
        for r in range(t, len(result), threads):
            _descend(
                result[r], slopes[r], fixed[r], hessian, scales[r], zeros[r], group, highest, book,
                passes,
            )  # fmt: skip
    return result
