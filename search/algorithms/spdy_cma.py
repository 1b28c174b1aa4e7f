"""spdy-cma: the coefficients of SPDY's dynamic program, searched by CMA-ES."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apportion.compressors.errors import ConfigurationError
from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.parameters import Part
from apportion.search.algorithms.registry import register
from apportion.search.space.additive import approximate
from apportion.search.space.moves import step
from apportion.search.space.space import Candidate, SearchSpace

try:
    import cma
except AttributeError as error:  # it takes its documentation apart, which python -OO leaves out
    raise ConfigurationError(
        "algorithm 'spdy-cma': the package cma cannot be loaded without docstrings; start Python "
        "without -OO (PYTHONOPTIMIZE=2)"
    ) from error


@register("spdy-cma")
class SpdyCma(Algorithm):
    """A candidate is the optimum of min sum_l exp(z_l) e_l(level) under the budgets (as in `spdy`);
    z follows a normal distribution whose mean and covariance adapt (Hansen & Ostermeier 2001,
    through pycma), from 0 with standard deviation `sigma`. A z whose profile is known is told that
    profile's fitness, and a paired level step from the best takes its place in the batch."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        sigma: Part = 0.5,
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        # Two coordinates at least: pycma has no one-dimensional form.
        self._width = max(2, len(space.layers))
        # Its own generator is left alone: ours draws.
        options = {
            "verbose": -9,
            "seed": np.nan,
            "randn": lambda *shape: self.rng.standard_normal(shape),
        }
        self._cma = cma.CMAEvolutionStrategy(self._width * [0.0], sigma, options)
        self._vectors: list[tuple[np.ndarray, Candidate]] = []
        self._table = np.maximum(space.error_table, 0.0)

    def propose(self) -> list[Trial]:
        asked: dict[Candidate, None] = {}
        self._vectors = []
        for z in self._cma.ask():
            weights = np.exp(np.clip(z[: len(self._table)], -20, 20))[:, None]
            weighted = np.where(np.isfinite(self._table), self._table, 0.0) * weights
            candidate = approximate(
                self.space, np.where(np.isfinite(self._table), weighted, np.inf)
            )
            self._vectors.append((z, candidate))
            if candidate not in self.known:
                asked[candidate] = None
        start = self.best() if self.known else self._vectors[0][1]
        while len(asked) < len(self._vectors):
            other = self.fresh(lambda: step(self.space, self.rng, start), asked)
            if other is None:
                break
            asked[other] = None
        return [Trial(candidate) for candidate in asked]

    def learn(self, trials: Sequence[Trial]) -> None:  # noqa: ARG002 - all it needs is in `known`
        if self._vectors:
            fitness = [min(self.known[candidate], 1e300) for _, candidate in self._vectors]
            self._cma.tell([z for z, _ in self._vectors], fitness)
            self._vectors = []
