"""A symmetric matrix B [m, m] by its lower triangle, in panels of as many columns as a tile
(`tile`) is wide, and its rank-k updates B -= U^T U. A panel has the rows from its first column
down, and the panels lie one behind the other: a column is read with short strides, and what is
above the diagonal of a panel is not read at all.

U [k, m] lies row by row. Importing this needs numba.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from apportion.compressors.elimination.tile import (
    BYTES,
    ROWS,
    update_row,
    update_tile,
    update_wide_row,
)


@njit
def whole(m: int, like: Any) -> int:
    """Places that m columns take: whole tiles, and an odd number of them where there are many, as
    rows of U that lie a multiple of a memory page apart displace each other from the cache."""
    width = BYTES // like.itemsize
    tiles = (m + width - 1) // width
    return (tiles | (tiles > 8)) * width


@njit
def place(r: int, c: int, m: int, width: int) -> int:
    """Where B[r, c] is, r >= c. Rows of a panel are `width` places apart."""
    j = c // width
    return width * (j * m - width * (j * (j + 1) // 2) + r) + c % width


@njit
def size(m: int, like: Any) -> int:
    """Places that the panels of [m, m] take."""
    return place(m, m, m, BYTES // like.itemsize)


@njit
def fold(own: Any, u: Any, k: int, first: int, last: int, m: int) -> None:
    """B -= U^T U in some columns.

    Args:
        own: B [m, m] in its panels; changed in place.
        u: U, [k, m], row behind row.
        k: rows of U.
        first: column where to begin, the first of a tile.
        last: column before which to end, the first of a tile or m.
        m: columns of B.
    """
    width = BYTES // own.itemsize
    for j in range(first, last, width):
        start = place(0, j, m, width)
        for i in range(j, m, ROWS):  # the tiles on the diagonal reach above it
            update_tile(own, start + i * width, width, u, i, m, u, j, m, k)


@njit
def subtract(u: Any, k: int, p: int, first: int, factor: Any, m: int) -> None:
    """Row k of U, which holds row p of B, becomes that of B - U^T U over the k rows before it.

    Args:
        u: U, [k + 1, m], row behind row; its last row is changed in place.
        k: rows before it.
        p: the row of B.
        first: place where to begin, the first of a tile.
        factor: room for k values.
        m: columns of B.
    """
    if k == 0:
        return
    for s in range(k):
        factor[s] = u[s * m + p]
    width, j = BYTES // u.itemsize, first
    while j + 2 * width <= m:
        update_wide_row(u, k * m + j, 0, factor, 0, 1, u, j, m, k)
        j += 2 * width
    if j < m:
        update_row(u, k * m + j, 0, factor, 0, 1, u, j, m, k)
