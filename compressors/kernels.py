"""The compiled loops behind `elimination`, over numpy arrays. Importing this needs numba; the first use compiles for some
seconds, and keeps the result on disk.

After t removals H^-1_t = B - U^T U, with one row of U per removal since B was last refreshed (Schur complements add up: it is
a pivoted Cholesky factorisation of H^-1 with the pruning score as the pivot rule). A step needs one row of it and O(d)
updates of the weights and the diagonal. Every k steps one matrix product folds U into B, and the columns that are gone are
dropped from all arrays as soon as they are a tenth. Until the first refresh B is the inverse that all rows share; afterwards
a row's B keeps its lower triangle alone, so that a refresh costs half a product.

Positions keep the order of the columns, so the first of equal scores is the lowest column. A column that is gone stays in
place until it is dropped, with w = 0, diagonal = 1, penalty = inf, and zeros in every later row of U.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

_TILE = 128
"""Rows of B that one matrix product updates."""


@njit
def _period(m: int) -> int:
    """Steps between refreshes with m columns left: 3 sqrt(m) was the fastest of those measured that keep layer errors
    to 1e-4."""
    return max(16, int(3 * np.sqrt(m)))


@njit
def _start(weight: Any, hinv: Any) -> Any:
    d = len(weight)
    w, diagonal = weight.copy(), np.diag(hinv).copy()
    penalty = np.zeros(d, weight.dtype)
    column = np.arange(d)
    own = np.empty(0, weight.dtype)
    u = np.empty((_period(d) + 8) * d, weight.dtype)  # 8: a block is never cut by a refresh
    return w, diagonal, penalty, column, own, u


@njit
def _remove(p: int, step: int, change: float, m: int, shared: Any, own: Any, w: Any, diagonal: Any, penalty: Any, u: Any) -> None:
    """Remove position p, as removal number `step` since the last refresh: its weight goes down by `change`, and the weights
    that are left make up for it (paper, eq. 3 and lemma 1)."""
    row = u[step * m : step * m + m]
    if len(own):
        row[: p + 1] = own[p * m : p * m + p + 1]
        for i in range(p + 1, m):
            row[i] = own[i * m + p]
    else:
        row[:] = shared[p]
    s = 0
    while s + 4 <= step:
        u0, u1 = u[s * m : s * m + m], u[(s + 1) * m : (s + 2) * m]
        u2, u3 = u[(s + 2) * m : (s + 3) * m], u[(s + 3) * m : (s + 4) * m]
        f0, f1, f2, f3 = u0[p], u1[p], u2[p], u3[p]
        for i in range(m):
            row[i] -= f0 * u0[i] + f1 * u1[i] + f2 * u2[i] + f3 * u3[i]
        s += 4
    while s < step:
        earlier = u[s * m : s * m + m]
        factor = earlier[p]
        for i in range(m):
            row[i] -= factor * earlier[i]
        s += 1
    root = np.sqrt(diagonal[p])
    scale, part = w.dtype.type(1 / root), w.dtype.type(change / root)
    for i in range(m):
        value = row[i] * scale if penalty[i] == 0 else w.dtype.type(0)
        row[i] = value
        w[i] -= value * part
        diagonal[i] -= value * value
    w[p], diagonal[p], penalty[p] = 0, 1, np.inf


@njit
def _refresh(steps: int, m: int, shared: Any, own: Any, w: Any, diagonal: Any, penalty: Any, column: Any, u: Any) -> Any:
    """Fold the rows of U into B, and drop what is gone. Returns B and the number of columns that are left."""
    alive = 0
    for i in range(m):
        alive += penalty[i] == 0
    left = m
    if len(own) == 0 or alive <= 0.9 * m:
        kept = np.empty(alive, np.int64)
        j = 0
        for i in range(m):
            if penalty[i] == 0:
                kept[j] = i
                j += 1
        left = alive
        for s in range(steps):  # new places lie at or before the old ones: all of this works in place
            for j in range(left):
                u[s * left + j] = u[s * m + kept[j]]
        if len(own) == 0:
            own = np.empty(left * left, w.dtype)
            for i in range(left):
                for j in range(i + 1):
                    own[i * left + j] = shared[kept[i], kept[j]]
        else:
            for i in range(left):
                for j in range(i + 1):
                    own[i * left + j] = own[kept[i] * m + kept[j]]
        for j in range(left):
            i = kept[j]
            w[j], diagonal[j], penalty[j], column[j] = w[i], diagonal[i], penalty[i], column[i]
    whole = u[: steps * left].reshape(steps, left)
    for start in range(0, left, _TILE):
        end = min(left, start + _TILE)
        product = np.dot(np.ascontiguousarray(whole[:, start:end].T), np.ascontiguousarray(whole[:, :end]))
        for i in range(start, end):
            for j in range(i + 1):
                own[i * left + j] -= product[i - start, j]
    return own, left


@njit
def _unstructured(weight: Any, hinv: Any, order: Any, losses: Any) -> None:
    w, diagonal, penalty, column, own, u = _start(weight, hinv)
    m, step, period = len(w), 0, _period(len(w))
    for turn in range(len(weight)):
        best, lowest = 0, np.inf
        for i in range(m):
            score = w[i] * w[i] / diagonal[i] + penalty[i]
            if score < lowest:
                best, lowest = i, score
        order[turn], losses[turn] = column[best], lowest / 2
        _remove(best, step, w[best], m, hinv, own, w, diagonal, penalty, u)
        step += 1
        if step == period:
            own, m = _refresh(step, m, hinv, own, w, diagonal, penalty, column, u)
            step, period = 0, _period(m)


@njit(parallel=True, cache=True)
def unstructured(weight: Any, hinv: Any) -> tuple[Any, Any]:
    order, losses = np.empty(weight.shape, np.int64), np.empty(weight.shape, weight.dtype)
    for r in prange(len(weight)):
        _unstructured(weight[r], hinv, order[r], losses[r])
    return order, losses


@njit
def _n_of_m(weight: Any, hinv: Any, n: int, m: int, result: Any) -> None:
    w, diagonal, penalty, column, own, u = _start(weight, hinv)
    width, step, period = len(w), 0, _period(len(w))
    left = np.full(len(w) // m, m)
    for _ in range(len(w) // m * (m - n)):
        best, lowest = -1, np.inf
        for i in range(width):
            if left[column[i] // m] > n:
                score = w[i] * w[i] / diagonal[i] + penalty[i]
                if score < lowest:
                    best, lowest = i, score
        left[column[best] // m] -= 1
        _remove(best, step, w[best], width, hinv, own, w, diagonal, penalty, u)
        step += 1
        if step == period:
            own, width = _refresh(step, width, hinv, own, w, diagonal, penalty, column, u)
            step, period = 0, _period(width)
    for i in range(width):
        result[column[i]] = w[i]


@njit(parallel=True, cache=True)
def n_of_m(weight: Any, hinv: Any, n: int, m: int) -> Any:
    result = np.zeros_like(weight)
    for r in prange(len(weight)):
        _n_of_m(weight[r], hinv, n, m, result[r])
    return result


@njit
def _quantize(weight: Any, fixed: Any, hinv: Any, scale: Any, zero: Any, highest: Any, result: Any) -> None:
    w, diagonal, penalty, column, own, u = _start(weight, hinv)
    m, step, period = len(w), 0, _period(len(w))
    taken = 0
    for _ in range(len(weight)):
        while taken < len(weight) and not fixed[taken]:
            taken += 1
        if taken < len(weight):  # the columns that stay zero leave H^-1 first, and move nothing
            best = int(np.searchsorted(column[:m], taken))
            taken += 1
            near = w.dtype.type(0)
        else:
            best, lowest = -1, np.inf
            farthest, distance = -1, w.dtype.type(-1)
            for i in range(m):
                code = min(max(np.rint(w[i] / scale) + zero, 0), highest)
                error = (scale * (code - zero) - w[i]) ** 2
                score = error / diagonal[i] + penalty[i]
                if score < lowest:
                    best, lowest = i, score
                if error > distance and penalty[i] == 0:
                    farthest, distance = i, error
            if distance > scale * scale / 4:
                best = farthest
            code = min(max(np.rint(w[best] / scale) + zero, 0), highest)
            near = scale * (code - zero)
        result[column[best]] = near
        _remove(best, step, w[best] - near, m, hinv, own, w, diagonal, penalty, u)
        step += 1
        if step == period:
            own, m = _refresh(step, m, hinv, own, w, diagonal, penalty, column, u)
            step, period = 0, _period(m)


@njit(parallel=True, cache=True)
def quantize(weight: Any, fixed: Any, hinv: Any, scales: Any, zeros: Any, highest: Any) -> Any:
    result = np.empty_like(weight)
    for r in prange(len(weight)):
        _quantize(weight[r], fixed[r], hinv, scales[r], zeros[r], highest, result[r])
    return result


@njit
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


@njit
def _blocks(weight: Any, hinv: Any, size: int, order: Any, losses: Any) -> None:
    w, diagonal, penalty, column, own, _ = _start(weight, hinv)
    d = len(weight)
    u = np.empty((_period(d) + size) * d, w.dtype)
    m, step, period = d, 0, _period(d)
    # The diagonal blocks of H^-1_t, one for every block that is not dropped.
    inner = np.empty((d // size, size, size), w.dtype)
    for b in range(d // size):
        inner[b] = hinv[b * size : (b + 1) * size, b * size : (b + 1) * size]
    factor, y = np.empty((size, size), w.dtype), np.empty(size, w.dtype)
    for turn in range(d // size):
        best, lowest = -1, np.inf
        for b in range(m // size):
            if penalty[b * size] == 0:
                score = _block_score(inner[b], w[b * size : (b + 1) * size], factor, y)
                if score < lowest:
                    best, lowest = b, score
        order[turn], losses[turn] = column[best * size] // size, lowest / 2
        for p in range(best * size, (best + 1) * size):
            _remove(p, step, w[p], m, hinv, own, w, diagonal, penalty, u)
            row = u[step * m : step * m + m]
            for b in range(m // size):
                for j in range(size):
                    for k in range(size):
                        inner[b, j, k] -= row[b * size + j] * row[b * size + k]
            step += 1
        if step >= period:
            there = penalty[:m:size] == 0
            own, left = _refresh(step, m, hinv, own, w, diagonal, penalty, column, u)
            if left < m:
                inner[: left // size] = inner[: len(there)][there]
            m, step, period = left, 0, _period(left)


@njit(parallel=True, cache=True)
def blocks(weight: Any, hinv: Any, size: int) -> tuple[Any, Any]:
    rows, d = weight.shape
    order, losses = np.empty((rows, d // size), np.int64), np.empty((rows, d // size), weight.dtype)
    for r in prange(rows):
        _blocks(weight[r], hinv, size, order[r], losses[r])
    return order, losses
