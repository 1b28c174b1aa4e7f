"""The compiled loops behind `elimination`, over numpy arrays. Importing this needs numba; the first use compiles for some
seconds, and keeps the result on disk.

After t removals H^-1_t = B - U^T U, with one row of U per removal since B was last refreshed (Schur complements add up: it is
a pivoted Cholesky factorisation of H^-1 with the pruning score as the pivot rule). A step needs one row of it and O(d)
updates of the weights and the diagonal. Every k steps one matrix product folds U into B, and the columns that are gone are
dropped from all arrays as soon as they are a fifth. Until the first refresh B is the inverse that all rows share; afterwards
a row's B keeps its lower triangle alone (`strips`), so that a refresh costs half a product.

Positions keep the order of the columns, so the first of equal scores is the lowest column. A column that is gone stays in
place until it is dropped, with w = 0, diagonal = 1, penalty = inf, and zeros in every later row of U. Arrays are as long as
whole tiles; the places after the last column count as gone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from compressors import strips, tile
from compressors.compiled import compiled
from compressors.strips import fold, place, size, subtract, whole
from compressors.tile import BYTES


@njit
def _period(m: int) -> int:
    """Steps between refreshes with m columns left."""
    return max(16, int(2 * np.sqrt(m)))


@njit
def _space(weight: Any, extra: int) -> Any:
    """What the rows of one thread work in: B once it is a row's own, U, and a column of U. `extra` steps may come after a
    refresh is due."""
    m = whole(weight.shape[1], weight)
    steps = _period(m) + extra
    return np.zeros(size(m, weight), weight.dtype), np.zeros(steps * m, weight.dtype), np.empty(steps, weight.dtype)


@njit
def _start(weight: Any, hinv: Any) -> Any:
    """The state of one row before its first removal: w, diagonal, penalty and column of every place."""
    d = len(weight)
    m = whole(d, weight)
    w, diagonal, penalty = np.zeros(m, weight.dtype), np.ones(m, weight.dtype), np.full(m, np.inf, weight.dtype)
    w[:d], diagonal[:d], penalty[:d] = weight, np.diag(hinv), 0
    column = np.zeros(m, np.int64)
    column[:d] = np.arange(d)
    return w, diagonal, penalty, column


@njit(fastmath={"contract"})
def _remove(p: int, step: int, change: float, m: int, owned: bool, shared: Any, space: Any, state: Any) -> None:
    """Remove position p, as removal number `step` since the last refresh: its weight goes down by `change`, and the weights
    that are left make up for it (paper, eq. 3 and lemma 1)."""
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
def _refresh(steps: int, m: int, owned: bool, shared: Any, space: Any, state: Any) -> int:
    """Fold the rows of U into B, and drop what is gone. Returns the number of places that are left."""
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
        for s in range(steps):  # new places lie at or before the old ones: all of this works in place
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
def _lowest(score: Any, m: int) -> int:
    """The first position of the lowest score; tile by tile, as a search for the place alone cannot use vectors."""
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


@njit(error_model="numpy")
def _unstructured(space: Any, weight: Any, hinv: Any, order: Any, losses: Any) -> None:
    w, diagonal, penalty, column = state = _start(weight, hinv)
    m, step, period, owned = len(w), 0, _period(len(w)), False
    score = np.empty(m, w.dtype)
    for turn in range(len(weight)):
        for i in range(m):
            score[i] = w[i] * w[i] / diagonal[i] + penalty[i]
        best = _lowest(score, m)
        order[turn], losses[turn] = column[best], score[best] / 2
        _remove(best, step, w[best], m, owned, hinv, space, state)
        step += 1
        if step == period:
            m = _refresh(step, m, owned, hinv, space, state)
            step, period, owned = 0, _period(m), True


@compiled(strips, tile)
def unstructured(weight: Any, hinv: Any, threads: int) -> tuple[Any, Any]:
    order, losses = np.empty(weight.shape, np.int64), np.empty(weight.shape, weight.dtype)
    for t in prange(threads):
        space = _space(weight, 0)
        for r in range(t, len(weight), threads):
            _unstructured(space, weight[r], hinv, order[r], losses[r])
    return order, losses


@njit(error_model="numpy")
def _n_of_m(space: Any, weight: Any, hinv: Any, n: int, group: int, result: Any) -> None:
    w, diagonal, penalty, column = state = _start(weight, hinv)
    m, step, period, owned = len(w), 0, _period(len(w)), False
    score = np.empty(m, w.dtype)
    left = np.full(len(weight) // group, group)
    closed = penalty.copy()  # inf also for the columns of a group of which only n are left
    for _ in range(len(weight) // group * (group - n)):
        for i in range(m):
            score[i] = w[i] * w[i] / diagonal[i] + closed[i]
        best = _lowest(score, m)
        own_group = column[best] // group
        left[own_group] -= 1
        _remove(best, step, w[best], m, owned, hinv, space, state)
        closed[best] = np.inf
        if left[own_group] == n:
            for i in range(max(0, best - group), min(m, best + group)):
                if column[i] // group == own_group:
                    closed[i] = np.inf
        step += 1
        if step == period:
            m = _refresh(step, m, owned, hinv, space, state)
            step, period, owned = 0, _period(m), True
            for i in range(m):
                closed[i] = np.inf if left[column[i] // group] == n else penalty[i]
    for i in range(m):
        if penalty[i] == 0:
            result[column[i]] = w[i]


@compiled(strips, tile)
def n_of_m(weight: Any, hinv: Any, n: int, m: int, threads: int) -> Any:
    result = np.zeros_like(weight)
    for t in prange(threads):
        space = _space(weight, 0)
        for r in range(t, len(weight), threads):
            _n_of_m(space, weight[r], hinv, n, m, result[r])
    return result


@njit(error_model="numpy")
def _nearest(w: Any, scale: Any, zero: Any, highest: Any) -> Any:
    code = np.rint(w / scale) + zero
    code = code if code > 0 else type(code)(0)
    return scale * ((code if code < highest else highest) - zero)


@njit(error_model="numpy")
def _quantize(space: Any, weight: Any, fixed: Any, hinv: Any, scale: Any, zero: Any, highest: Any, result: Any) -> None:
    w, diagonal, penalty, column = state = _start(weight, hinv)
    m, step, period, owned = len(w), 0, _period(len(w)), False
    score, nearness = np.empty(m, w.dtype), np.empty(m, w.dtype)
    taken = 0
    for _ in range(len(weight)):
        while taken < len(weight) and not fixed[taken]:
            taken += 1
        if taken < len(weight):  # the columns that stay zero leave H^-1 first, and move nothing
            best = 0
            while penalty[best] != 0 or column[best] < taken:
                best += 1
            taken += 1
            near = w.dtype.type(0)
        else:
            for i in range(m):
                error = _nearest(w[i], scale, zero, highest) - w[i]
                error *= error
                score[i] = error / diagonal[i] + penalty[i]
                nearness[i] = -error if penalty[i] == 0 else w.dtype.type(0)
            best = _lowest(nearness, m)
            if -nearness[best] <= scale * scale / 4:  # no outlier
                best = _lowest(score, m)
            near = _nearest(w[best], scale, zero, highest)
        result[column[best]] = near
        _remove(best, step, w[best] - near, m, owned, hinv, space, state)
        step += 1
        if step == period:
            m = _refresh(step, m, owned, hinv, space, state)
            step, period, owned = 0, _period(m), True


@compiled(strips, tile)
def quantize(weight: Any, fixed: Any, hinv: Any, scales: Any, zeros: Any, highest: Any, threads: int) -> Any:
    result = np.empty_like(weight)
    for t in prange(threads):
        space = _space(weight, 0)
        for r in range(t, len(weight), threads):
            _quantize(space, weight[r], fixed[r], hinv, scales[r], zeros[r], highest, result[r])
    return result


@njit(error_model="numpy")
def _block_score(inner: Any, w: Any, factor: Any, y: Any) -> float:
    """w^T inner^-1 w by Cholesky: factor factor^T = inner, y = factor^-1 w, and |y|^2."""
    total = 0.0
    for i in range(len(w)):
        for j in range(i + 1):
            value = inner[i, j]
            for k in range(j):
                value -= factor[i, k] * factor[j, k]
            factor[i, j] = np.sqrt(value) if i == j else value / factor[j, j]
        value = w[i]
        for k in range(i):
            value -= factor[i, k] * y[k]
        y[i] = value / factor[i, i]
        total += y[i] * y[i]
    return total


@njit(error_model="numpy")
def _blocks(space: Any, weight: Any, hinv: Any, size: int, order: Any, losses: Any) -> None:
    w, _, penalty, column = state = _start(weight, hinv)
    m, step, period, owned = len(w), 0, _period(len(w)), False
    blocks = len(weight) // size
    # The diagonal blocks of H^-1_t, one for every block that is not dropped.
    inner = np.empty((blocks, size, size), w.dtype)
    for b in range(blocks):
        inner[b] = hinv[b * size : (b + 1) * size, b * size : (b + 1) * size]
    lower, y = np.empty((size, size), w.dtype), np.empty(size, w.dtype)
    for turn in range(len(weight) // size):
        best, lowest = -1, np.inf
        for b in range(blocks):
            if penalty[b * size] == 0:
                score = _block_score(inner[b], w[b * size : (b + 1) * size], lower, y)
                if score < lowest:
                    best, lowest = b, score
        order[turn], losses[turn] = column[best * size] // size, lowest / 2
        for p in range(best * size, (best + 1) * size):
            _remove(p, step, w[p], m, owned, hinv, space, state)
            row = space[1][step * m : step * m + m]
            for b in range(blocks):
                for j in range(size):
                    for k in range(size):
                        inner[b, j, k] -= row[b * size + j] * row[b * size + k]
            step += 1
        if step >= period:
            there = penalty[: blocks * size : size] == 0
            before = m if owned else 0
            m = _refresh(step, m, owned, hinv, space, state)
            if m != before:
                blocks = there.sum()
                inner[:blocks] = inner[: len(there)][there]
            step, period, owned = 0, _period(m), True


@compiled(strips, tile)
def blocks(weight: Any, hinv: Any, size: int, threads: int) -> tuple[Any, Any]:
    rows, d = weight.shape
    order, losses = np.empty((rows, d // size), np.int64), np.empty((rows, d // size), weight.dtype)
    for t in prange(threads):
        space = _space(weight, size)  # a block is never cut by a refresh
        for r in range(t, len(weight), threads):
            _blocks(space, weight[r], hinv, size, order[r], losses[r])
    return order, losses
