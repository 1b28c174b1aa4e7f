"""ga: a genetic algorithm on integers, through pymoo (Holland 1975)."""

from __future__ import annotations

import numpy as np
from pymoo.algorithms.soo.nonconvex.ga import GA

from apportion.search.algorithms.evolution.pymoo_base import Evolution
from apportion.search.algorithms.parameters import Count, Several, Share
from apportion.search.algorithms.registry import register
from apportion.search.space.space import SearchSpace


@register("ga")
class Genetic(Evolution):
    """Neighbours in a gene are neighbours in compression."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        population: Several = 24,
        offspring: Count = 12,
        mutation: Share = 0.1,
    ) -> None:
        super().__init__(
            space, rng, evaluations, cold, GA, mutation, pop_size=population, n_offsprings=offspring
        )
