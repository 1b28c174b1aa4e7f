"""evopress: level-swap evolution with staged selection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.parameters import Count, Part
from apportion.search.algorithms.registry import register
from apportion.search.space.moves import begin, step
from apportion.search.space.space import Candidate, SearchSpace


@register("evopress")
class EvoPress(Algorithm):
    """Sieberling et al. 2025, algorithm 1: (1 + lambda) with `offspring` mutants of the best
    profile, scored on the first `fidelity` of the calibration data; the best `survivors` are scored
    in full. A mutant is min(a, b) paired level steps with a, b uniform in 1..3, as there."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        offspring: Count = 12,
        survivors: Count = 2,
        fidelity: Part = 0.25,
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        self._offspring, self._survivors, self._fidelity = offspring, survivors, fidelity
        self._seen: set[Candidate] = (
            set()
        )  # mutants scored on the small part, that were not good enough
        self._chosen: list[Candidate] = []

    def propose(self) -> list[Trial]:
        if self._chosen:
            chosen, self._chosen = self._chosen, []
            bound = self.worth_knowing(self.known[self.best()])
            return [Trial(candidate, bound=bound) for candidate in chosen]
        made: dict[Candidate, None] = {}
        for _ in range(self._offspring):
            candidate = self.fresh(self._mutant, {*made, *self._seen}) or self.fresh(
                self._mutant, made
            )
            if candidate is None:
                break
            made[candidate] = None
        fidelity = self._fidelity if self.known else 1.0
        return [Trial(candidate, fidelity) for candidate in made]

    def learn(self, trials: Sequence[Trial]) -> None:
        partial = [trial for trial in trials if trial.fidelity < 1.0]
        if partial:
            partial.sort(key=lambda trial: np.inf if trial.fitness is None else trial.fitness)
            self._chosen = [
                trial.candidate
                for trial in partial[: self._survivors]
                if trial.candidate not in self.known
            ]
            self._seen.update(trial.candidate for trial in partial[self._survivors :])

    def _mutant(self) -> Candidate:
        if not self.known:
            return begin(self.space, self.rng)
        return step(self.space, self.rng, self.best(), int(self.rng.integers(1, 4, 2).min()))
