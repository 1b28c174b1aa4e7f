"""anneal: simulated annealing over paired level steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.parameters import Count, Weight
from apportion.search.algorithms.registry import register
from apportion.search.space.moves import begin, step
from apportion.search.space.space import Candidate, SearchSpace


@register("anneal")
class Annealing(Algorithm):
    """Kirkpatrick, Gelatt & Vecchi 1983: `batch` neighbours of the current profile at a time, each
    taken by Metropolis's rule in turn. The temperature begins at `heat` times the median change of
    the first neighbours, and falls geometrically to a hundredth of that as the evaluations are
    spent."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        heat: Weight = 0.2,
        batch: Count = 4,
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        self._heat, self._batch = heat, batch
        self._current: Candidate | None = None
        self._hottest = 0.0
        self._told = 0

    def propose(self) -> list[Trial]:
        asked: dict[Candidate, None] = {}
        start = self._current
        for _ in range(self._batch):
            make = (
                (lambda: begin(self.space, self.rng))
                if start is None
                else (lambda: step(self.space, self.rng, start))
            )
            if (candidate := self.fresh(make, asked)) is not None:
                asked[candidate] = None
        return [Trial(candidate) for candidate in asked]

    def learn(self, trials: Sequence[Trial]) -> None:
        self._told += len(trials)
        if self._current is None:
            self._current = self.best()
            return
        changes = [self.known[t.candidate] - self.known[self._current] for t in trials]
        if not self._hottest:
            finite = [abs(change) for change in changes if np.isfinite(change)]
            self._hottest = self._heat * float(np.median(finite)) if finite else 0.0
        temperature = self._hottest * 0.01 ** min(1.0, self._told / self.evaluations)
        for trial in trials:
            change = self.known[trial.candidate] - self.known[self._current]
            if change <= 0 or (
                temperature > 0 and self.rng.random() < np.exp(-change / temperature)
            ):
                self._current = trial.candidate
