"""All unstructured levels of a layer, or all levels of one block size, from one elimination run.

The run keeps the order and the losses alone. With P = H^-1[order][:, order] = L L^T and y = L^-1
w[order], the weights after c removals are w[order] - L[:, :c] y[:c]: one Cholesky factorisation per
row gives every level."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from apportion.compressors.elimination import dispatch
from apportion.compressors.elimination.dispatch import Limits
from apportion.compressors.elimination.work import Group, Work
from apportion.compressors.threads import torch_threads

_AT_ONCE = 1 << 22
"""Values of the d x d factors that are solved in one batch."""


class Ladder:
    """`counts`: how many weights (or blocks of `size`) the levels remove from the whole layer, in
    the order in which they will be asked for."""

    def __init__(
        self, groups: Sequence[Group], size: int, counts: Sequence[int], work: Work
    ) -> None:
        self._groups, self._size, self._counts, self._work = groups, size, list(counts), work
        self._made: dict[int, Tensor] = {}
        tasks = [
            (g, w)
            for g, group in enumerate(groups)
            for w in group.weight.split(work.rows_at_once(group))
        ]
        ran = work.map(_run, [(w, groups[g].hinv, size, work.limits) for g, w in tasks])
        self._orders: list[list[Tensor]] = [[] for _ in groups]
        losses = []
        for (g, _), (order, lost) in zip(tasks, ran, strict=True):
            self._orders[g].append(order)
            losses.append(lost)
        lost = torch.cat(losses)
        self._rows = len(lost)
        self._row_by_loss = lost.flatten().argsort(stable=True) // lost.shape[1]

    def without(self, count: int) -> Tensor:
        """The layer's weights, float32 [rows, d], after the `count` cheapest removals over all
        rows."""
        if count not in self._made:
            size = 4 * self._rows * self._groups[0].weight.shape[1]
            first = self._counts.index(count)
            counts = list(dict.fromkeys(self._counts[first:]))[
                : max(1, self._work.limits.memory // size)
            ]
            self._made = dict(zip(counts, self._reconstruct(counts), strict=True))
        return self._made[count]

    def _reconstruct(self, counts: list[int]) -> Tensor:
        """[levels, rows, d]."""
        every = [
            torch.bincount(self._row_by_loss[:c], minlength=self._rows) * self._size for c in counts
        ]
        by_row = torch.stack(every, 1)
        tasks, start = [], 0
        for group, orders in zip(self._groups, self._orders, strict=True):
            at = 0
            for order in orders:
                rows = slice(start + at, start + at + len(order))
                tasks.append(
                    (
                        group.weight[at : at + len(order)],
                        group.hinv,
                        order,
                        self._size,
                        by_row[rows],
                        self._work.limits,
                    )
                )
                at += len(order)
            start += at
        like = self._groups[0].weight
        made = torch.empty(len(counts), self._rows, like.shape[1], device=like.device)
        start = 0
        for part in self._work.map(
            _weights, tasks
        ):  # joined as they come: all levels once more would not fit the memory
            made[:, start : start + part.shape[1]] = part
            start += part.shape[1]
        return made


def _run(weight: Tensor, hinv: Tensor, size: int, limits: Limits) -> tuple[Tensor, Tensor]:
    """Order and losses; in double precision where single breaks down on a Hessian that is nearly
    singular."""

    def run(w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return (
            dispatch.eliminate(w, h, limits)
            if size == 1
            else dispatch.eliminate_blocks(w, h, size, limits)
        )

    order, losses = run(weight, hinv)
    if not torch.isfinite(losses).all():
        order, losses = run(weight.double(), hinv.double())
    return order, losses.double()


def _weights(
    weight: Tensor, hinv: Tensor, order: Tensor, size: int, counts: Tensor, limits: Limits
) -> Tensor:
    """Weights [levels, rows, d] after the first counts[r, l] columns of row r's sequence are gone,
    the rest at its optimum."""
    d = weight.shape[1]
    sequence = (order[:, :, None] * size + torch.arange(size, device=order.device)).flatten(1)
    made = dispatch.reconstruct(weight, hinv, sequence, counts, limits)
    if made is not None and not torch.isfinite(made).all():  # as in _run
        weight, hinv = weight.double(), hinv.double()
        made = dispatch.reconstruct(weight, hinv, sequence, counts, limits)
    if made is not None and torch.isfinite(made).all():
        return made
    step = max(
        1, _AT_ONCE // d**2
    )  # of the shape alone: a batched product may round otherwise in a larger batch
    parts = [slice(i, i + step) for i in range(0, len(weight), step)]
    counts = counts.to(weight.device)
    threads = max(
        1, min(limits.threads, limits.memory // (4 * weight.element_size() * step * d**2))
    )
    with torch_threads(1), ThreadPoolExecutor(threads) as pool:
        solved = pool.map(
            lambda rows: _solve(weight[rows], hinv, sequence[rows], counts[rows]).float(), parts
        )
        return torch.cat(list(solved), 1)


def _solve(w: Tensor, hinv: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    most = int(counts.max())
    ordered = w.gather(1, order)
    p = hinv[order[:, :most, None], order[:, None, :most]]
    factor, info = torch.linalg.cholesky_ex(p)
    if bool(info.any()):
        if w.dtype == torch.float32:
            return _solve(w.double(), hinv.double(), order, counts)
        factor = torch.linalg.cholesky(p)  # raises, and says what is wrong
    y = torch.linalg.solve_triangular(factor, ordered[:, :most, None], upper=False)
    gone = (
        torch.arange(most, device=w.device)[None, :, None] < counts[:, None, :]
    )  # [rows, most, levels]
    y = y * gone
    # Rows of L below the pivots: L21 = P21 L11^-T, so that L21 y = P21 (L11^-T y).
    below = hinv[order[:, most:, None], order[:, None, :most]]
    change = torch.cat(
        [factor @ y, below @ torch.linalg.solve_triangular(factor.mT, y, upper=True)], 1
    )
    result = ordered[:, :, None] - change
    result[:, :most].masked_fill_(gone, 0)
    return (
        torch.empty_like(result)
        .scatter_(1, order[:, :, None].expand_as(result), result)
        .permute(2, 0, 1)
    )
