"""Additive errors corrected by what the trials show, for repairs that spend the budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.linalg import cho_solve, cholesky

from apportion.search.algorithms.base import Trial
from apportion.search.space.space import SearchSpace

_FIRST = 24
"""Trials before anything is learnt from them."""
_GROWTH = 1.15
_MEMORY = 1000
"""Trials after which an old one counts 1/e as much."""
_STIFFNESS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
_LEAST = 0.02
"""The least that a table's error is multiplied by."""
_SHAPES = 3
"""Coefficients of a layer's polynomial."""


class LearnedErrors:
    """A layer's error at each level: the space's own, e, times a polynomial of second degree in the
    level's rank by compression. The polynomials' coefficients come from ridge regression of the
    fitness on all trials told, discounted by age, with the penalty of greatest evidence; no work
    grows with the number of trials. So a table that is right stays as it is, and one that ranks
    layers wrongly is put right. A space without errors begins from t^2. `table` [layers, most
    levels] is what `repair` and `fill` take, inf where a layer has no such level."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._layers = np.arange(len(space.layers))
        present = np.isfinite(space.error_table)
        rank = space.position / np.maximum(space.counts - 1, 1)[:, None]
        own = np.where(present, space.error_table, 0.0)
        self._prior = space.error_table if np.ptp(own) > 0 else np.where(present, rank**2, np.inf)
        error = np.where(present, self._prior, 0.0)
        typical = float(np.median(error.max(1))) or float(np.abs(error).max()) or 1.0
        # A table of hopeless levels (1e9) must not dwarf the rest.
        self._error = np.clip(error / typical, 0.0, 20.0)
        self._shapes = np.polynomial.legendre.legvander(2 * rank - 1, _SHAPES - 1)
        self.table = self._prior
        size = _SHAPES * len(self._layers) + 3
        self._moments = np.zeros((size, size))
        self._count, self._due = 0, _FIRST

    def learn(self, trials: Sequence[Trial]) -> None:
        """Take trials in the order in which they were told; those in part and those whose fitness
        is not finite say nothing."""
        told = [
            (t.candidate, t.fitness)
            for t in trials
            if t.fidelity == 1.0 and t.fitness is not None and math.isfinite(t.fitness)
        ]
        if not told:
            return
        levels = np.array([candidate for candidate, _ in told])
        error = self._error[self._layers, levels]
        shaped = error[:, :, None] * self._shapes[self._layers, levels]
        fitness = np.array([value for _, value in told])
        ones = np.ones(len(told))
        rows = np.column_stack([ones, error.sum(1), shaped.reshape(len(told), -1), fitness])
        self._moments *= math.exp(-len(told) / _MEMORY)
        self._moments += rows.T @ rows
        self._count += len(told)
        if self._count >= self._due:
            self._due = math.ceil(self._count * _GROWTH)
            self._fit()

    def _fit(self) -> None:
        """The correction of greatest evidence; the table stays where the fitness does not rise with
        it at all."""
        # Sums about the means, the column of ones gone.
        mean = self._moments[0] / self._moments[0, 0]
        about = self._moments - self._moments[0, 0] * np.outer(mean, mean)
        total, squares = about[1:-1, -1], about[-1, -1]
        normal, count = about[1:-1, 1:-1], self._moments[0, 0]
        if squares <= 0 or normal[0, 0] <= 0:
            return
        unit = float(np.diag(normal)[1:].mean()) or 1.0
        best: tuple[float, np.ndarray] | None = None
        for stiffness in _STIFFNESS:
            penalty = np.full(len(normal), stiffness * unit)
            penalty[0] = 1e-9 * normal[0, 0]  # the table's own weight is free
            factor = cholesky(normal + np.diag(penalty), lower=True, check_finite=False)
            weights = cho_solve((factor, True), total, check_finite=False)
            misfit = max(float(squares - total @ weights), 1e-12 * squares)
            unlikely = count * math.log(misfit) / 2 + float(
                np.log(np.diag(factor)).sum() - np.log(penalty[1:]).sum() / 2
            )
            if best is None or unlikely < best[0]:
                best = unlikely, weights
        assert best is not None
        slope, own = best[1][0], best[1][1:].reshape(len(self._layers), 1, _SHAPES)
        if slope <= 0:
            return
        factors = 1 + (own * self._shapes).sum(2) / slope
        self.table = self._prior * np.maximum(factors, _LEAST)
