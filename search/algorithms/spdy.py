"""spdy: search over coefficients of the dynamic program (Frantar & Alistarh 2022, "SPDY", section
3.2 and algorithm 2).

A candidate is the optimum of the reparametrised problem min sum_l c_l e_l(level) under the budgets;
what is searched is the vector c, one coefficient per layer, first at random, then in a shrinking
neighbourhood of the best. Beyond the paper, every second candidate is the best profile with two
layers stepped against each other: coefficients alone end coarse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression

from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.parameters import Count, Share, Times
from apportion.search.algorithms.registry import register
from apportion.search.space.additive import approximate
from apportion.search.space.moves import step
from apportion.search.space.space import Candidate, SearchSpace

_TRIES = 2
"""Coefficient vectors tried for one candidate that is not known yet; many vectors give the same
profile, and each costs a dynamic program."""


@register("spdy")
class Spdy(Algorithm):
    """`prior` is e_l: `table`, the space's own additive errors, so that the search starts near
    their optimum; or `quadratic`, the paper's (i / (n - 1))^2 over a layer's levels from least to
    most compressed. `samples` random vectors come first; then up to a share `neighbourhood` of the
    layers is drawn anew, one layer less after `patience` failures in a row. `spread`: the largest
    standard deviation of a coefficient's logarithm (table). `batch` trials are asked at a time."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        prior: Literal["table", "quadratic"] = "table",
        samples: Times = 8,
        neighbourhood: Share = 0.1,
        spread: Share = 0.7,
        patience: Count = 40,
        batch: Count = 4,
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        self._prior_kind = prior
        self._prior = self._quadratic() if prior == "quadratic" else self._table()
        self._samples, self._patience, self._batch, self._spread = samples, patience, batch, spread
        self._width = max(1, round(neighbourhood * len(space.layers)))
        self._best = np.ones(len(space.layers))
        self._best_fitness = np.inf
        self._failures = 0
        self._asked: dict[Candidate, np.ndarray | None] = {}
        self._begun = False

    def propose(self) -> list[Trial]:
        self._asked = {}
        for turn in range(self._batch):
            if turn % 2 and self._samples <= 0:
                self._ask_step()
                continue
            for _ in range(_TRIES):
                coefficients = self._next()
                candidate = approximate(self.space, self._weighted(coefficients))
                if candidate in self.known:
                    self._judge(coefficients, self.known[candidate])
                elif candidate not in self._asked:
                    self._asked[candidate] = coefficients
                    break
            else:
                self._samples = 0  # random vectors lead nowhere new
                self._ask_step()
        return [Trial(candidate) for candidate in self._asked]

    def learn(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            coefficients = self._asked.get(trial.candidate)
            if coefficients is None or self._judge(coefficients, self.known[trial.candidate]):
                continue
            self._failures += self._samples <= 0
            if self._failures >= self._patience and self._width > 1:
                self._width, self._failures = self._width - 1, 0

    def _judge(self, coefficients: np.ndarray, fitness: float) -> bool:
        """Keep the coefficients where their profile is better than the best ones'."""
        better = fitness < self._best_fitness
        if better:
            self._best, self._best_fitness, self._failures = coefficients, fitness, 0
        return better

    def _next(self) -> np.ndarray:
        """The vector to try next: c = 1, then `samples` random ones, then neighbours of the
        best."""
        if not self._begun:
            self._begun = True
            return self._best
        self._samples -= 1
        return self._random() if self._samples >= 0 else self._neighbour()

    def _random(self) -> np.ndarray:
        return self._draw(np.ones(len(self.space.layers)))

    def _neighbour(self) -> np.ndarray:
        coefficients = self._best.copy()
        width = int(self.rng.integers(1, self._width + 1))
        chosen = self.rng.choice(len(coefficients), width, replace=False)
        coefficients[chosen] = self._draw(coefficients[chosen])
        return coefficients

    def _ask_step(self) -> None:
        """The best profile with two layers stepped against each other."""
        start = self.best() if self.known else approximate(self.space, self._weighted(self._best))
        candidate = self.fresh(lambda: step(self.space, self.rng, start), self._asked)
        if candidate is not None:
            self._asked[candidate] = None

    def _draw(self, around: np.ndarray) -> np.ndarray:
        """New coefficients: uniform in [0, 1] for the paper's prior; for a table that already knows
        the layers' sensitivities, a factor around the old ones."""
        if self._prior_kind == "quadratic":
            return self.rng.random(len(around))
        spread = self._spread * self.rng.random() ** 2
        return around * np.exp(self.rng.normal(0.0, spread, len(around)))

    def _weighted(self, coefficients: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            weighted = self._prior * coefficients[:, None]
        return np.where(np.isfinite(self.space.error_table), weighted, np.inf)

    def _table(self) -> np.ndarray:
        """The space's errors made strictly increasing with compression, by isotonic regression and
        a little of the quadratic: a level that noise in the table puts behind a more compressed one
        could never be chosen, whatever c."""
        quadratic = self._quadratic()
        table = np.zeros(quadratic.shape)
        for layer, order in enumerate(self.space.order):
            table[layer, order] = isotonic_regression(
                np.maximum(self.space.errors[layer][order], 0.0)
            ).x
        scale = float(np.median(table.max(1)))
        return table + 0.02 * (scale if scale > 0 else 1.0) * quadratic

    def _quadratic(self) -> np.ndarray:
        return (self.space.position / np.maximum(self.space.counts - 1, 1)[:, None]) ** 2
