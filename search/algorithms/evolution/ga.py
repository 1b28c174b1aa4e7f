"""ga: a genetic algorithm on integers, through pymoo (Holland 1975)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.mutation import Mutation
from pymoo.core.repair import Repair
from pymoo.core.sampling import Sampling

from apportion.search.algorithms.base import Trial
from apportion.search.algorithms.evolution.pymoo_base import Evolution
from apportion.search.algorithms.learned import LearnedErrors
from apportion.search.algorithms.parameters import Count, Several, Share
from apportion.search.algorithms.registry import register
from apportion.search.space.moves import begin, decode, encode, paired
from apportion.search.space.repair import fill, repair
from apportion.search.space.space import SearchSpace


@register("ga")
class Genetic(Evolution):
    """Neighbours in a gene are neighbours in compression. A child mutates with probability
    `mutation`, by one to three paired level steps, and its repair spends what the budgets leave, as
    Chu & Beasley's does (1998, drop and add), by learnt errors."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        population: Several = 24,
        offspring: Count = 12,
        mutation: Share = 0.9,
    ) -> None:
        self.errors = LearnedErrors(space)
        super().__init__(
            space,
            rng,
            evaluations,
            cold,
            GA,
            mutation,
            pop_size=population,
            n_offsprings=offspring,
            sampling=_Start(self),
            mutation=_Pairs(space, mutation),
            repair=_Spent(self),
        )

    def learn(self, trials: Sequence[Trial]) -> None:
        self.errors.learn(trials)
        super().learn(trials)


class _Start(Sampling):
    """The profiles told so far, and random ones that spend the budgets."""

    def __init__(self, algorithm: Genetic) -> None:
        super().__init__()
        self._algorithm = algorithm

    def _do(
        self, _problem: Any, n_samples: int, *_: Any, random_state: Any = None, **__: Any
    ) -> np.ndarray:
        space, known = self._algorithm.space, self._algorithm.known
        made = sorted(known, key=known.__getitem__)[:n_samples]
        while len(made) < n_samples:
            made.append(begin(space, random_state, self._algorithm.errors.table))
        return np.array([encode(space, candidate) for candidate in made])


class _Pairs(Mutation):
    """One to three paired level steps, as `step` has them: what is saved in one layer another one
    may spend."""

    def __init__(self, space: SearchSpace, share: float) -> None:
        super().__init__(prob=share)
        self._space = space

    def _do(
        self, _problem: Any, X: np.ndarray, *_: Any, random_state: Any = None, **__: Any
    ) -> np.ndarray:
        pairs = random_state.integers(1, 4, (2, len(X))).min(0)
        moved = [
            paired(self._space, random_state, x, int(n)) for x, n in zip(X, pairs, strict=True)
        ]
        return np.array(moved)


class _Spent(Repair):
    """Within the budgets, and what is left of them spent; a profile that would so become a known
    one stays as it is repaired."""

    def __init__(self, algorithm: Genetic) -> None:
        super().__init__()
        self._algorithm = algorithm

    def _do(self, _problem: Any, X: np.ndarray, **_: Any) -> np.ndarray:
        space, errors = self._algorithm.space, self._algorithm.errors.table
        made = []
        for x in X:
            repaired = repair(space, decode(space, x), errors)
            filled = fill(space, repaired, errors)
            made.append(encode(space, repaired if filled in self._algorithm.known else filled))
        return np.array(made)
