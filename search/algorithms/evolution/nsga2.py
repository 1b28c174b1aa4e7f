"""nsga2: the front of fitness against costs, through pymoo."""

from __future__ import annotations

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2

from apportion.compressors.errors import UnknownNameError
from apportion.search.algorithms.evolution.pymoo_base import Evolution
from apportion.search.algorithms.parameters import Several, Share
from apportion.search.algorithms.registry import register
from apportion.search.space.space import SearchSpace


@register("nsga2")
class Nsga2(Evolution):
    """Deb et al. 2002: fitness and one or two `metrics` (by default the budgeted ones) are
    minimised together among profiles that meet the budgets. Its run's best is the best fitness; the
    front is among its trials. Genome and operators are those of `ga`."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        metrics: list[str] | None = None,
        population: Several = 16,
        mutation: Share = 0.1,
    ) -> None:
        for metric in metrics or []:
            if metric not in space.costs:
                raise UnknownNameError(
                    "metric", metric, space.costs, "algorithm 'nsga2', parameter 'metrics'"
                )
        others = metrics or list(space.budgets)[:2] or list(space.costs)[:1]
        super().__init__(
            space, rng, evaluations, cold, NSGA2, mutation, others, pop_size=population
        )
