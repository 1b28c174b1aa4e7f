"""local: best-improvement local search over feasible swaps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.parameters import Count
from apportion.search.algorithms.registry import register
from apportion.search.space.moves import begin, step
from apportion.search.space.space import Candidate, SearchSpace


@register("local")
class LocalSearch(Algorithm):
    """`pool` swaps of two layers' levels are made, the `batch` of least additive error scored, the
    best one taken where it is better than the current profile. After `patience` batches in vain the
    search goes on from its best profile with `kick` swaps at once (iterated local search, Lourenco
    et al. 2003)."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        pool: Count = 32,
        batch: Count = 8,
        patience: Count = 4,
        kick: Count = 3,
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        self._pool, self._batch, self._patience, self._kick = pool, batch, patience, kick
        self._current: Candidate | None = None
        self._failures = 0

    def propose(self) -> list[Trial]:
        made: dict[Candidate, None] = {}
        start, pairs = self._current, 1
        if self._failures >= self._patience:
            start, pairs, self._failures = self.best(), self._kick, 0
        for _ in range(self._pool):
            if start is None:
                candidate = self.fresh(lambda: begin(self.space, self.rng), made)
            else:
                candidate = self.fresh(lambda: step(self.space, self.rng, start, pairs), made)
            if candidate is None:
                break
            made[candidate] = None
        bound = math.inf if start is None or pairs > 1 else self.worth_knowing(self.known[start])
        if pairs > 1 and made:
            self._current = None  # wherever the kick leads, the search goes on from there
        return [
            Trial(candidate, bound=bound)
            for candidate in sorted(made, key=self.space.error)[: self._batch]
        ]

    def learn(self, trials: Sequence[Trial]) -> None:
        if not trials:
            return
        found = min((t.candidate for t in trials), key=self.known.__getitem__)
        if self._current is None or self.known[found] < self.known[self._current]:
            self._current, self._failures = found, 0
        else:
            self._failures += 1
