"""A search space as a mixed-integer program: x_la says that layer l has level a, y_ab that two
coupled layers have levels a and b; the y of a pair sum to its x (the local polytope: Wainwright &
Jordan 2008, section 4). With whole x the y are whole too."""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint
from scipy.optimize import milp as highs

from apportion.search.space.space import Candidate, SearchSpace


class Polytope:
    """Columns: the x, layer by layer, then the y. `loads` [budgets, columns]: what each column adds
    to the loads."""

    def __init__(self, space: SearchSpace) -> None:
        self._present = np.isfinite(space.error_table)
        layer_of, _ = np.nonzero(self._present)
        count = len(layer_of)
        self._rows = sparse.csr_array((np.ones(count), (layer_of, np.arange(count))))
        self._sums = np.ones(len(space.layers))
        self.loads = space.load_table[:, self._present]
        if space.coupling is not None:
            self._couple(space.counts.tolist(), space.coupling.edges, space.coupling.tables)
        self._whole = np.zeros(self.width, dtype=np.int64)
        self._whole[:count] = 1

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.loads.shape[1])

    def _couple(self, counts: list[int], edges: np.ndarray, tables: np.ndarray) -> None:
        first = [0, *itertools.accumulate(counts)]
        marginals, loads = [], []
        for (i, j), table in zip(edges.tolist(), tables.transpose(1, 0, 2, 3), strict=True):
            n, m = counts[i], counts[j]
            own = sparse.vstack(
                [
                    sparse.kron(sparse.eye_array(n), np.ones((1, m))),
                    sparse.kron(np.ones((1, n)), sparse.eye_array(m)),
                ]
            )
            columns = [*range(first[i], first[i] + n), *range(first[j], first[j] + m)]
            layers = sparse.csr_array(
                (-np.ones(n + m), (np.arange(n + m), columns)), shape=(n + m, first[-1])
            )
            marginals.append((layers, own))
            loads.append(table[:, :n, :m].reshape(len(table), -1))
        left = sparse.vstack([self._rows, *(layers for layers, _ in marginals)])
        right = sparse.block_diag([own for _, own in marginals])
        above = sparse.csr_array((len(self._sums), right.shape[1]))
        self._rows = sparse.csr_array(sparse.hstack([left, sparse.vstack([above, right])]))
        self._sums = np.append(self._sums, np.zeros(right.shape[0]))
        self.loads = np.hstack([self.loads, *loads])

    def errors(self, table: np.ndarray) -> np.ndarray:
        """The objective of additive errors [layers, most levels]."""
        objective = np.zeros(self.width)
        weights = np.clip(table[self._present], -1e12, 1e12)
        objective[: len(weights)] = weights
        return objective

    def least(self, objective: np.ndarray, limits: np.ndarray | None = None, **options: Any) -> Any:
        """HiGHS's result for the least objective with loads of `limits` [budgets] at most; without
        them, any loads."""
        constraints = [LinearConstraint(self._rows, self._sums, self._sums)]
        if limits is not None and len(limits):
            constraints.append(LinearConstraint(self.loads, -np.inf, limits))
        return _quietly(
            objective,
            integrality=self._whole,
            bounds=Bounds(0, 1),
            constraints=constraints,
            options=options,
        )

    def stretched(self, limits: np.ndarray, **options: Any) -> Any:
        """HiGHS's result for the least number by which `limits` must be multiplied."""
        rows = sparse.hstack([self._rows, sparse.csr_array((len(self._sums), 1))])
        return _quietly(
            np.append(np.zeros(self.width), 1.0),
            integrality=np.append(self._whole, 0),
            bounds=Bounds(0, np.append(np.ones(self.width), np.inf)),
            constraints=[
                LinearConstraint(sparse.csr_array(rows), self._sums, self._sums),
                LinearConstraint(np.hstack([self.loads, -limits[:, None]]), -np.inf, 0),
            ],
            options=options,
        )

    def chosen(self, x: np.ndarray) -> Candidate:
        """The candidate of a solution's columns."""
        table = np.full(self._present.shape, -1.0)
        table[self._present] = x[: int(self._present.sum())]
        return tuple(int(i) for i in table.argmax(1))


def _quietly(*arguments: Any, **options: Any) -> Any:
    """HiGHS, with what it prints sent to stderr: some of its releases leave debugging lines on the
    process's stdout, where they would spoil JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        return highs(*arguments, **options)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
