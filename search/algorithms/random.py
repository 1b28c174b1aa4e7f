"""random: feasible candidates, spread over the space."""

from __future__ import annotations

import numpy as np

from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.parameters import Count
from apportion.search.algorithms.registry import register
from apportion.search.space.moves import draw
from apportion.search.space.space import Candidate, SearchSpace


@register("random")
class Random(Algorithm):
    """Every layer's level drawn uniformly, then repaired; a candidate that is known already is
    drawn again."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        batch: Count = 16,
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        self._batch = batch

    def propose(self) -> list[Trial]:
        drawn: dict[Candidate, None] = {}
        for _ in range(self._batch):
            candidate = self.fresh(lambda: draw(self.space, self.rng), drawn)
            if candidate is None:
                break  # a small space, all but exhausted
            drawn[candidate] = None
        return [Trial(candidate) for candidate in drawn]
