"""spdy: search over coefficients of the dynamic program (Frantar & Alistarh 2022, "SPDY", section 3.2 and algorithm 2).

A candidate is the optimum of the reparametrised problem min sum_l c_l e_l(level) under the budgets; what is searched is the
vector c, one coefficient per layer, first at random, then in a shrinking neighbourhood of the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from search.additive import approximate
from search.algorithms.base import Algorithm, Trial, register
from search.space import Candidate, SearchSpace

_TRIES = 25
"""Coefficient vectors tried for one candidate that is not known yet; many vectors give the same profile."""


@register("spdy")
class Spdy(Algorithm):
    """`prior` is e_l: `table`, the space's own additive errors, so that c = 1 is the additive optimum and the search starts
    there; or `quadratic`, the paper's (i / (n - 1))^2 over a layer's levels from least to most compressed. `samples` random
    vectors come first; then a share of the layers is drawn anew, `neighbourhood` at first and one layer less after
    `patience` failures in a row. `batch` trials are asked at a time."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        prior: Literal["table", "quadratic"] = "table",
        samples: int = 20,
        neighbourhood: float = 0.2,
        spread: float = 0.7,
        patience: int = 100,
        batch: int = 4,
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        self._prior_kind = prior
        self._prior = self._quadratic() if prior == "quadratic" else self._table()
        self._samples, self._patience, self._batch, self._spread = samples, patience, batch, spread
        self._width = max(1, round(neighbourhood * len(space.layers)))
        self._best = np.ones(len(space.layers))
        self._best_fitness = np.inf
        self._failures = 0
        self._asked: dict[Candidate, np.ndarray] = {}

    def propose(self) -> list[Trial]:
        self._asked = {}
        for _ in range(self._batch):
            for _ in range(_TRIES):
                coefficients = self._random() if self._samples > 0 else self._neighbour()
                candidate = approximate(self.space, self._weighted(coefficients))
                if candidate not in self.known and candidate not in self._asked:
                    self._asked[candidate] = coefficients
                    self._samples -= 1
                    break
            else:
                self._samples = 0  # random vectors lead nowhere new
                if (candidate := self._step()) not in self.known and candidate not in self._asked:
                    self._asked[candidate] = self._best
        return [Trial(candidate) for candidate in self._asked]

    def learn(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            fitness = self.known[trial.candidate]
            coefficients = self._asked.get(trial.candidate)
            if coefficients is None:  # a starting profile: with the table as prior the additive optimum is c = 1
                if self._prior_kind == "table" and trial.candidate == approximate(self.space, self._weighted(self._best)):
                    self._best_fitness = fitness
                continue
            if fitness < self._best_fitness:
                self._best, self._best_fitness, self._failures = coefficients, fitness, 0
                continue
            self._failures += self._samples <= 0
            if self._failures >= self._patience and self._width > 1:
                self._width, self._failures = self._width - 1, 0

    def _random(self) -> np.ndarray:
        return self._draw(np.ones(len(self.space.layers)))

    def _neighbour(self) -> np.ndarray:
        coefficients = self._best.copy()
        width = int(self.rng.integers(1, self._width + 1))
        chosen = self.rng.choice(len(coefficients), width, replace=False)
        coefficients[chosen] = self._draw(coefficients[chosen])
        return coefficients

    def _step(self) -> Candidate:
        """Where no coefficients near the best give a new profile: the best profile with one layer moved, repaired."""
        moved = list(self.best() if self.known else approximate(self.space, self._weighted(self._best)))
        layer = int(self.rng.integers(len(moved)))
        moved[layer] = int(self.rng.integers(self.space.counts[layer]))
        return self.space.repair(moved)

    def _draw(self, around: np.ndarray) -> np.ndarray:
        """New coefficients: uniform in [0, 1] for the paper's prior; for a table that already knows the layers' sensitivities,
        a factor around the old ones."""
        if self._prior_kind == "quadratic":
            return self.rng.random(len(around))
        return around * np.exp(self.rng.normal(0.0, self._spread, len(around)))

    def _weighted(self, coefficients: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            weighted = self._prior * coefficients[:, None]
        return np.where(np.isfinite(self.space.error_table), weighted, np.inf)

    def _table(self) -> np.ndarray:
        return self.space.error_table

    def _quadratic(self) -> np.ndarray:
        return (self.space.position / np.maximum(self.space.counts - 1, 1)[:, None]) ** 2
