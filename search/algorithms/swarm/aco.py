"""aco: ant colony, a Max-Min Ant System."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.parameters import Count, Share, Weight
from apportion.search.algorithms.registry import register
from apportion.search.space.repair import repair, uniform
from apportion.search.space.space import Candidate, SearchSpace


@register("aco")
class AntColony(Algorithm):
    """Stuetzle & Hoos 2000: pheromone per (layer, level) in [tau_min, 1], laid by the best ant of
    each batch and by the best so far in turn. The heuristic term is 1 / (1 + reduced cost): a
    level's additive error and its loads at the price at which the additive optimum's layers are
    content. `ants` per batch; `evaporation` is rho; `alpha`, `beta` weigh pheromone and
    heuristic."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        ants: Count = 8,
        evaporation: Share = 0.1,
        alpha: Weight = 1.0,
        beta: Weight = 2.0,
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        self._ants, self._rho, self._alpha, self._beta = ants, evaporation, alpha, beta
        self._present = np.isfinite(space.error_table)
        self._pheromone = np.where(self._present, 1.0, 0.0)
        self._lowest = 1.0 / (20 * np.maximum(space.counts, 2))[:, None]
        self._heuristic = self._visibility()
        self._turn = 0

    def propose(self) -> list[Trial]:
        weights = self._pheromone**self._alpha * self._heuristic**self._beta
        cumulative = np.cumsum(weights / weights.sum(1, keepdims=True), axis=1)
        asked: dict[Candidate, None] = {}
        for _ in range(self._ants):
            candidate = self.fresh(lambda: self._walk(cumulative), asked)
            if candidate is not None:
                asked[candidate] = None
        return [Trial(candidate) for candidate in asked]

    def learn(self, trials: Sequence[Trial]) -> None:
        if not trials:
            return
        self._turn += 1
        leader = (
            self.best()
            if self._turn % 2
            else min((t.candidate for t in trials), key=lambda c: self.known.get(c, np.inf))
        )
        self._pheromone *= 1 - self._rho
        self._pheromone[np.arange(len(leader)), list(leader)] += self._rho
        self._pheromone = np.where(self._present, np.clip(self._pheromone, self._lowest, 1.0), 0.0)

    def _walk(self, cumulative: np.ndarray) -> Candidate:
        drawn = (self.rng.random((len(cumulative), 1)) > cumulative[:, :-1]).sum(1)
        return repair(self.space, np.minimum(drawn, self.space.counts - 1).tolist())

    def _visibility(self) -> np.ndarray:
        """Heuristic term, [layers, most levels], in (0, 1]; 0 where there is no such level."""
        space = self.space
        error = np.where(self._present, space.error_table, 0.0)
        loads = (
            np.where(self._present, space.loads_beside(uniform(space)).sum(0), 0.0)
            if space.budgets
            else np.zeros_like(error)
        )
        middle = np.array(
            [float(np.median(row[p])) for row, p in zip(loads, self._present, strict=True)]
        )
        spread = float(np.abs(error).max()) / max(float((loads.max(1) - middle).mean()), 1e-12)
        best, best_gap = np.zeros_like(error), np.inf
        for price in spread * np.geomspace(1e-4, 1e2, 60):
            reduced = error + price * loads
            reduced = np.where(
                self._present,
                reduced - np.where(self._present, reduced, np.inf).min(1, keepdims=True),
                np.inf,
            )
            gap = (
                float(np.abs(space.loads(reduced.argmin(1)) - space.limits).max())
                if space.budgets
                else 0.0
            )
            if gap < best_gap:
                best, best_gap = reduced, gap
        scale = (
            np.median(best[self._present & (best > 0)])
            if (self._present & (best > 0)).any()
            else 1.0
        )
        return np.where(self._present, 1.0 / (1.0 + best / (0.1 * scale)), 0.0)
