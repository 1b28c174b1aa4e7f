"""random: feasible candidates, spread over the space."""

from __future__ import annotations

import numpy as np

from search.algorithms.base import Algorithm, Trial, register
from search.space import Candidate, SearchSpace

_TRIES = 50


@register("random")
class Random(Algorithm):
    """Every layer's level drawn uniformly, then repaired; a candidate that is known already is drawn again."""

    def __init__(
        self, space: SearchSpace, rng: np.random.Generator, evaluations: float, *, cold: bool = False, batch: int = 16
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        self._batch = batch

    def propose(self) -> list[Trial]:
        drawn: dict[Candidate, None] = {}
        for _ in range(self._batch):
            candidate = draw(self.space, self.rng)
            for _ in range(_TRIES):
                if candidate not in self.known and candidate not in drawn:
                    break
                candidate = draw(self.space, self.rng)
            else:
                break  # a small space, all but exhausted
            drawn[candidate] = None
        return [Trial(candidate) for candidate in drawn]


def draw(space: SearchSpace, rng: np.random.Generator) -> Candidate:
    """A random feasible candidate."""
    return space.repair(rng.integers(space.counts).tolist())
