"""One row of a layer while its weights are removed one after the other, in compiled code over numpy
arrays.

After t removals H^-1_t = B - U^T U, with one row of U per removal since B was last refreshed (Schur
complements add up: it is a pivoted Cholesky factorisation of H^-1 with the pruning score as the
pivot rule). A step needs one row of it and O(d) updates of the weights and the diagonal. Every k
steps one matrix product folds U into B, and the columns that are gone are dropped from all arrays
as soon as they are a fifth. Until the first refresh B is the inverse that all rows share;
afterwards a row's B keeps its lower triangle alone (`panels`), so that a refresh costs half a
product.

Positions keep the order of the columns, so the first of equal scores is the lowest column. A column
that is gone stays in place until it is dropped, with w = 0, diagonal = 1, penalty = inf, and zeros
in every later row of U. Arrays are as long as whole tiles; the places after the last column count
as gone. Importing this needs numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from apportion.compressors.elimination.panels import fold, place, size, subtract, whole
from apportion.compressors.elimination.tile import BYTES


@njit
def period(m: int) -> int:
    """Steps between refreshes with m columns left."""
    return max(16, int(2 * np.sqrt(m)))


@njit
def room(weight: Any, extra: int) -> Any:
    """What the rows of one thread work in: B once it is a row's own, U, and a column of U. `extra`
    steps may come after a refresh is due."""
    m = whole(weight.shape[1], weight)
    steps = period(m) + extra
    return (
        np.zeros(size(m, weight), weight.dtype),
        np.zeros(steps * m, weight.dtype),
        np.empty(steps, weight.dtype),
    )


@njit
def begin(weight: Any, hinv: Any) -> Any:
    """The state of one row before its first removal: w, diagonal, penalty and column of every
    place."""
    d = len(weight)
    m = whole(d, weight)
    w, diagonal, penalty = (
        np.zeros(m, weight.dtype),
        np.ones(m, weight.dtype),
        np.full(m, np.inf, weight.dtype),
    )
    w[:d], diagonal[:d], penalty[:d] = weight, np.diag(hinv), 0
    column = np.zeros(m, np.int64)
    column[:d] = np.arange(d)
    return w, diagonal, penalty, column


@njit(fastmath={"contract"})
def remove(
    p: int, step: int, change: float, m: int, owned: bool, shared: Any, space: Any, state: Any
) -> None:
    """Remove one position; the weights that are left make up for it (Frantar & Alistarh 2022,
    eq. 3 and lemma 1).

    Args:
        p: the position.
        step: number of removals since the last refresh.
        change: by how much its weight goes down.
        m: positions that are left.
        owned: whether the row has a B of its own by now.
        shared: H^-1 [d, d] of all rows, where it has none.
        space: the row's own B, U, and room for factors; see `room`.
        state: weights, diagonal of B, penalties and columns of the positions; see `begin`.
    """
    own, u, factor = space
    w, diagonal, penalty, _ = state
    at = step * m
    row, width = u[at : at + m], BYTES // w.itemsize
    if owned:
        for j in range(p // width + 1):
            start = place(p, j * width, m, width)
            row[j * width : (j + 1) * width] = own[start : start + width]
        start = place(0, p, m, width)
        for i in range(p + 1, m):
            row[i] = own[start + i * width]
    else:
        row[: len(shared)] = shared[p]
        row[len(shared) :] = 0
    subtract(u, step, p, 0, factor, m)
    root = np.sqrt(diagonal[p])
    scale, part = w.dtype.type(1 / root), w.dtype.type(change / root)
    for i in range(m):
        value = row[i] * scale if penalty[i] == 0 else w.dtype.type(0)
        row[i] = value
        w[i] -= value * part
        diagonal[i] -= value * value
    w[p], diagonal[p], penalty[p] = 0, 1, np.inf


@njit
def _gather(to: Any, source: Any, places: Any) -> None:
    for j in range(len(places)):
        to[j] = source[places[j]]


@njit
def refresh(steps: int, m: int, owned: bool, shared: Any, space: Any, state: Any) -> int:
    """Fold the rows of U into B, and drop what is gone.

    Args:
        steps: rows of U.
        m: positions so far.
        owned: whether the row has a B of its own by now.
        shared: H^-1 [d, d] of all rows, where it has none.
        space: the row's own B, U, and room for factors; see `room`.
        state: weights, diagonal of B, penalties and columns of the positions; see `begin`.

    Returns:
        The number of positions that are left.
    """
    own, u, _ = space
    w, diagonal, penalty, column = state
    alive = 0
    for i in range(m):
        alive += penalty[i] == 0
    left, width = m, BYTES // w.itemsize
    if not owned or whole(alive, w) <= 0.8 * m:
        kept, left = np.empty(alive, np.int64), whole(alive, w)
        j = 0
        for i in range(m):
            if penalty[i] == 0:
                kept[j] = i
                j += 1
        for s in range(
            steps
        ):  # new places lie at or before the old ones: all of this works in place
            _gather(u[s * left : (s + 1) * left], u[s * m : (s + 1) * m], kept)
        before = np.empty(width, np.int64)
        for j in range(0, alive, width):
            columns = kept[j : j + width]
            for c in range(len(columns)):
                before[c] = place(0, columns[c], m, width)
            start = place(0, j, left, width)
            for i in range(j, alive):
                to = own[start + i * width : start + (i + 1) * width]
                if owned:
                    _gather(to, own[kept[i] * width :], before[: len(columns)])
                else:
                    _gather(to, shared[kept[i]], columns)
        for j in range(alive):
            i = kept[j]
            w[j], diagonal[j], penalty[j], column[j] = w[i], diagonal[i], penalty[i], column[i]
        w[alive:left], diagonal[alive:left], penalty[alive:left] = 0, 1, np.inf
    fold(own, u, steps, 0, left, left)
    return left


@njit(fastmath={"nnan", "nsz"})
def lowest(score: Any, m: int) -> int:
    """The first position of the lowest score; tile by tile, as a search for the place alone cannot
    use vectors."""
    width = BYTES // score.itemsize
    best, first = score.dtype.type(np.inf), 0
    for start in range(0, m, width):
        low = score.dtype.type(np.inf)
        for value in score[start : start + width]:
            low = min(low, value)
        if low < best:
            best, first = low, start
    for i in range(first, first + width):
        if score[i] == best:
            return i
    return first
