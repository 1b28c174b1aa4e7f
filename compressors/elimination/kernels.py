"""The compiled loops behind `elimination`: which weight of a row goes next, and what becomes of it
(`removal` does the rest). All rows share the inverse Hessian; each thread takes every so-manieth of
them. Importing this needs numba; the first use compiles for some seconds, and keeps the result on
disk.

The public functions take and give what those of `textbook` do, as contiguous arrays; the grid's
`scales` and `zeros` are [rows]."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from apportion.compressors.elimination import panels, removal, tile
from apportion.compressors.elimination.compiled import compiled


@njit(error_model="numpy")
def _unstructured(space: Any, weight: Any, hinv: Any, order: Any, losses: Any) -> None:
    w, diagonal, penalty, column = state = removal.begin(weight, hinv)
    m, step, period, owned = len(w), 0, removal.period(len(w)), False
    score = np.empty(m, w.dtype)
    for turn in range(len(weight)):
        for i in range(m):
            score[i] = w[i] * w[i] / diagonal[i] + penalty[i]
        best = removal.lowest(score, m)
        order[turn], losses[turn] = column[best], score[best] / 2
        removal.remove(best, step, w[best], m, owned, hinv, space, state)
        step += 1
        if step == period:
            m = removal.refresh(step, m, owned, hinv, space, state)
            step, period, owned = 0, removal.period(m), True


@compiled(removal, panels, tile)
def unstructured(weight: Any, hinv: Any, threads: int) -> tuple[Any, Any]:
    """Order int64 [rows, d] and losses [rows, d] of an elimination down to nothing; weight
    [rows, d], hinv [d, d]."""
    order, losses = np.empty(weight.shape, np.int64), np.empty(weight.shape, weight.dtype)
    for t in prange(threads):
        space = removal.room(weight, 0)
        for r in range(t, len(weight), threads):
            _unstructured(space, weight[r], hinv, order[r], losses[r])
    return order, losses


@njit(error_model="numpy")
def _n_of_m(space: Any, weight: Any, hinv: Any, n: int, group: int, result: Any) -> None:
    w, diagonal, penalty, column = state = removal.begin(weight, hinv)
    m, step, period, owned = len(w), 0, removal.period(len(w)), False
    score = np.empty(m, w.dtype)
    left = np.full(len(weight) // group, group)
    closed = penalty.copy()  # inf also for the columns of a group of which only n are left
    for _ in range(len(weight) // group * (group - n)):
        for i in range(m):
            score[i] = w[i] * w[i] / diagonal[i] + closed[i]
        best = removal.lowest(score, m)
        own_group = column[best] // group
        left[own_group] -= 1
        removal.remove(best, step, w[best], m, owned, hinv, space, state)
        closed[best] = np.inf
        if left[own_group] == n:
            for i in range(max(0, best - group), min(m, best + group)):
                if column[i] // group == own_group:
                    closed[i] = np.inf
        step += 1
        if step == period:
            m = removal.refresh(step, m, owned, hinv, space, state)
            step, period, owned = 0, removal.period(m), True
            for i in range(m):
                closed[i] = np.inf if left[column[i] // group] == n else penalty[i]
    for i in range(m):
        if penalty[i] == 0:
            result[column[i]] = w[i]


@compiled(removal, panels, tile)
def n_of_m(weight: Any, hinv: Any, n: int, m: int, threads: int) -> Any:
    """Weights [rows, d] that keep n of every m consecutive columns.

    Args:
        weight: [rows, d].
        hinv: H^-1, [d, d].
        n: weights that stay in every group.
        m: columns of a group; a divisor of d.
        threads: of the CPU.

    Returns:
        An array like `weight`.
    """
    result = np.zeros_like(weight)
    for t in prange(threads):
        space = removal.room(weight, 0)
        for r in range(t, len(weight), threads):
            _n_of_m(space, weight[r], hinv, n, m, result[r])
    return result


@njit(error_model="numpy")
def _nearest(w: Any, scale: Any, zero: Any, highest: Any) -> Any:
    code = np.rint(w / scale) + zero
    code = code if code > 0 else type(code)(0)
    return scale * ((code if code < highest else highest) - zero)


@njit(error_model="numpy")
def _quantize(
    space: Any, weight: Any, fixed: Any, hinv: Any, scale: Any, zero: Any, highest: Any, result: Any
) -> None:
    w, diagonal, penalty, column = state = removal.begin(weight, hinv)
    m, step, period, owned = len(w), 0, removal.period(len(w)), False
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
            best = removal.lowest(nearness, m)
            if -nearness[best] <= scale * scale / 4:  # no outlier
                best = removal.lowest(score, m)
            near = _nearest(w[best], scale, zero, highest)
        result[column[best]] = near
        removal.remove(best, step, w[best] - near, m, owned, hinv, space, state)
        step += 1
        if step == period:
            m = removal.refresh(step, m, owned, hinv, space, state)
            step, period, owned = 0, removal.period(m), True


@compiled(removal, panels, tile)
def quantize(
    weight: Any, fixed: Any, hinv: Any, scales: Any, zeros: Any, highest: Any, threads: int
) -> Any:
    """Weights on their rows' grids, in the order of least loss.

    Args:
        weight: [rows, d].
        fixed: bool [rows, d], weights that are zero and stay it.
        hinv: H^-1, [d, d].
        scales: [rows], steps of the grids.
        zeros: [rows], codes of zero.
        highest: the highest code.
        threads: of the CPU.

    Returns:
        An array like `weight`.
    """
    result = np.empty_like(weight)
    for t in prange(threads):
        space = removal.room(weight, 0)
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
    w, _, penalty, column = state = removal.begin(weight, hinv)
    m, step, period, owned = len(w), 0, removal.period(len(w)), False
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
            removal.remove(p, step, w[p], m, owned, hinv, space, state)
            row = space[1][step * m : step * m + m]
            for b in range(blocks):
                for j in range(size):
                    for k in range(size):
                        inner[b, j, k] -= row[b * size + j] * row[b * size + k]
            step += 1
        if step >= period:
            there = penalty[: blocks * size : size] == 0
            before = m if owned else 0
            m = removal.refresh(step, m, owned, hinv, space, state)
            if m != before:
                blocks = there.sum()
                inner[:blocks] = inner[: len(there)][there]
            step, period, owned = 0, removal.period(m), True


@compiled(removal, panels, tile)
def blocks(weight: Any, hinv: Any, size: int, threads: int) -> tuple[Any, Any]:
    """Order int64 [rows, d / size] and losses of an elimination by blocks of `size` consecutive
    columns; weight [rows, d], hinv [d, d]."""
    rows, d = weight.shape
    order, losses = np.empty((rows, d // size), np.int64), np.empty((rows, d // size), weight.dtype)
    for t in prange(threads):
        space = removal.room(weight, size)  # a block is never cut by a refresh
        for r in range(t, len(weight), threads):
            _blocks(space, weight[r], hinv, size, order[r], losses[r])
    return order, losses
