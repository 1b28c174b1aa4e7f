"""The compiled loops behind `elimination`, over numpy arrays. Importing this needs numba; the first use compiles for some
seconds, and keeps the result on disk.

After t removals H^-1_t = H^-1 - U^T U, with one row of U per removal (Schur complements add up: it is a pivoted Cholesky
factorisation of H^-1 with the pruning score as the pivot rule). A step needs one row of it and O(d) updates of the weights and
the diagonal. The columns that are left stand packed in front, so that a row costs about d^3 / 6 multiply-adds instead of d^3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange


@njit(inline="always")
def swap(a: int, b: int, step: int, w: Any, diagonal: Any, column: Any, u: Any) -> None:
    """Two packed positions change places."""
    w[a], w[b] = w[b], w[a]
    diagonal[a], diagonal[b] = diagonal[b], diagonal[a]
    column[a], column[b] = column[b], column[a]
    for s in range(step):
        u[s, a], u[s, b] = u[s, b], u[s, a]


@njit(inline="always")
def remove(last: int, step: int, change: float, hinv: Any, w: Any, diagonal: Any, column: Any, u: Any) -> None:
    """Remove the column at packed position `last`, behind which nothing is active, as removal number `step`: its weight
    goes down by `change`, and those before it make up for that."""
    p = column[last]
    row = u[step]
    for i in range(last):
        row[i] = hinv[p, column[i]]
    for s in range(step):
        factor = u[s, last]
        earlier = u[s]
        for i in range(last):
            row[i] -= factor * earlier[i]
    root = np.sqrt(diagonal[last])
    for i in range(last):
        row[i] /= root
        w[i] -= row[i] * (change / root)
        diagonal[i] -= row[i] * row[i]


@njit(parallel=True, cache=True)
def unstructured(weight: Any, hinv: Any) -> tuple[Any, Any]:
    rows, d = weight.shape
    order, losses = np.empty((rows, d), np.int64), np.empty((rows, d))
    for r in prange(rows):
        w, diagonal, column, u = weight[r].copy(), np.diag(hinv).copy(), np.arange(d), np.empty((d, d))
        for step in range(d):
            last = d - step - 1
            best, lowest = 0, np.inf
            for i in range(last + 1):
                score = w[i] * w[i] / diagonal[i]
                if score < lowest or (score == lowest and column[i] < column[best]):
                    best, lowest = i, score
            order[r, step], losses[r, step] = column[best], lowest / 2
            swap(best, last, step, w, diagonal, column, u)
            remove(last, step, w[last], hinv, w, diagonal, column, u)
    return order, losses


@njit(parallel=True, cache=True)
def n_of_m(weight: Any, hinv: Any, n: int, m: int) -> Any:
    rows, d = weight.shape
    result = np.zeros((rows, d))
    for r in prange(rows):
        w, diagonal, column, u = weight[r].copy(), np.diag(hinv).copy(), np.arange(d), np.empty((d, d))
        left = np.full(d // m, m)
        total = d // m * (m - n)
        for step in range(total):
            last = d - step - 1
            best, lowest = -1, np.inf
            for i in range(last + 1):
                if left[column[i] // m] > n:
                    score = w[i] * w[i] / diagonal[i]
                    if best < 0 or score < lowest or (score == lowest and column[i] < column[best]):
                        best, lowest = i, score
            left[column[best] // m] -= 1
            swap(best, last, step, w, diagonal, column, u)
            remove(last, step, w[last], hinv, w, diagonal, column, u)
        for i in range(d - total):
            result[r, column[i]] = w[i]
    return result


@njit(parallel=True, cache=True)
def quantize(weight: Any, hinv: Any, scales: Any, zeros: Any, highest: float) -> Any:
    rows, d = weight.shape
    result = np.zeros((rows, d))
    for r in prange(rows):
        w, diagonal, column, u = weight[r].copy(), np.diag(hinv).copy(), np.arange(d), np.empty((d, d))
        scale, zero = scales[r], zeros[r]
        for step in range(d):
            last = d - step - 1
            best, lowest = -1, np.inf
            farthest, distance = -1, -1.0
            for i in range(last + 1):
                code = min(max(np.rint(w[i] / scale) + zero, 0.0), highest)
                error = (scale * (code - zero) - w[i]) ** 2
                score = error / diagonal[i]
                if best < 0 or score < lowest or (score == lowest and column[i] < column[best]):
                    best, lowest = i, score
                if error > distance or (error == distance and column[i] < column[farthest]):
                    farthest, distance = i, error
            if distance > scale * scale / 4:
                best = farthest
            swap(best, last, step, w, diagonal, column, u)
            code = min(max(np.rint(w[last] / scale) + zero, 0.0), highest)
            near = scale * (code - zero)
            result[r, column[last]] = near
            remove(last, step, w[last] - near, hinv, w, diagonal, column, u)
    return result


@njit(parallel=True, cache=True)
def blocks(weight: Any, hinv: Any, size: int) -> tuple[Any, Any]:
    rows, d = weight.shape
    count = d // size
    order, losses = np.empty((rows, count), np.int64), np.empty((rows, count))
    for r in prange(rows):
        w, diagonal, column, u = weight[r].copy(), np.diag(hinv).copy(), np.arange(d), np.empty((d, d))
        # The diagonal blocks of H^-1_t, one for every block of packed positions.
        inner = np.empty((count, size, size))
        for b in range(count):
            for i in range(size):
                for j in range(size):
                    inner[b, i, j] = hinv[b * size + i, b * size + j]
        factor = np.empty((size, size))
        y = np.empty(size)
        for turn in range(count):
            left = count - turn
            best, lowest = -1, np.inf
            for b in range(left):
                # w_b^T inner^-1 w_b by Cholesky: factor factor^T = inner, y = factor^-1 w_b, score = |y|^2
                score = 0.0
                for i in range(size):
                    for j in range(i + 1):
                        total = inner[b, i, j]
                        for k in range(j):
                            total -= factor[i, k] * factor[j, k]
                        factor[i, j] = np.sqrt(total) if i == j else total / factor[j, j]
                    total = w[b * size + i]
                    for k in range(i):
                        total -= factor[i, k] * y[k]
                    y[i] = total / factor[i, i]
                    score += y[i] * y[i]
                if best < 0 or score < lowest or (score == lowest and column[b * size] < column[best * size]):
                    best, lowest = b, score
            order[r, turn], losses[r, turn] = column[best * size] // size, lowest / 2
            end = left - 1
            for i in range(size):
                swap(best * size + i, end * size + i, turn * size, w, diagonal, column, u)
            for i in range(size):
                for j in range(size):
                    inner[best, i, j], inner[end, i, j] = inner[end, i, j], inner[best, i, j]
            for i in range(size - 1, -1, -1):
                last, step = end * size + i, turn * size + size - 1 - i
                remove(last, step, w[last], hinv, w, diagonal, column, u)
                row = u[step]
                for b in range(end):
                    for j in range(size):
                        for k in range(size):
                            inner[b, j, k] -= row[b * size + j] * row[b * size + k]
    return order, losses
