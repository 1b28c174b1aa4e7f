"""nsga2: the front of fitness against costs, through pymoo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.evaluator import Evaluator
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.problems.static import StaticProblem

from compressors.errors import UnknownNameError
from search.algorithms.base import Algorithm, Trial, register
from search.algorithms.ga import Between, Start, Steps, ToBudgets
from search.moves import decode
from search.space import SearchSpace


@register("nsga2")
class Nsga2(Algorithm):
    """Deb et al. 2002: fitness and one or two `metrics` (by default the budgeted ones) are minimised together among profiles
    that meet the budgets. Its run's best is the best fitness; the front is among its trials. Genome and operators are those of
    `ga`."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        metrics: list[str] | None = None,
        population: int = 16,
        mutation: float = 0.1,
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        for metric in metrics or []:
            if metric not in space.costs:
                raise UnknownNameError("metric", metric, space.costs, "algorithm 'nsga2', parameter 'metrics'")
        self._metrics = metrics or list(space.budgets)[:2] or list(space.costs)[:1]
        highest = space.counts - 1
        objectives = 1 + len(self._metrics)
        self._problem = Problem(n_var=len(highest), n_obj=objectives, xl=np.zeros(len(highest)), xu=highest, vtype=int)
        self._nsga = NSGA2(
            pop_size=population,
            sampling=Start(space, self.known),
            crossover=Between(prob=0.9),
            mutation=Steps(mutation),
            repair=ToBudgets(space),
            eliminate_duplicates=True,
        )
        self._nsga.setup(self._problem, termination=NoTermination(), seed=int(rng.integers(2**31)), verbose=False)
        self._asked: Any = None

    def propose(self) -> list[Trial]:
        self._asked = self._nsga.ask()
        if self._asked is None or not len(self._asked):
            return []
        return [Trial(decode(self.space, x)) for x in self._asked.get("X")]

    def learn(self, trials: Sequence[Trial]) -> None:
        if self._asked is None:
            return  # the starting profiles: they enter with the first population
        rows = [(min(self.known[t.candidate], 1e300), *self._costs(t.candidate)) for t in trials]
        Evaluator().eval(StaticProblem(self._problem, F=np.array(rows)), self._asked)
        self._nsga.tell(infills=self._asked)

    def _costs(self, candidate: tuple[int, ...]) -> list[float]:
        return [self.space.total(metric, candidate) / self.space.dense[metric] for metric in self._metrics]
