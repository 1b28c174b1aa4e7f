"""ga: a genetic algorithm on integers, through pymoo's ask and tell (Holland 1975; pymoo: Blank & Deb 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.crossover import Crossover
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.sampling import Sampling
from pymoo.core.termination import NoTermination
from pymoo.problems.static import StaticProblem

from search.algorithms.base import Algorithm, Trial, register
from search.moves import decode, encode
from search.space import Candidate, SearchSpace


@register("ga")
class Genetic(Algorithm):
    """The genome is each layer's position between its least and its most compressed level, so that neighbours in a gene are
    neighbours in compression. Infeasible offspring are repaired, never rejected."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        population: int = 24,
        offspring: int = 12,
        mutation: float = 0.1,
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        highest = space.counts - 1
        self._problem = Problem(n_var=len(space.layers), n_obj=1, xl=np.zeros(len(highest)), xu=highest, vtype=int)
        self._ga = GA(
            pop_size=population,
            n_offsprings=offspring,
            sampling=Start(space, self.known),
            crossover=Between(prob=0.9),
            mutation=Steps(mutation),
            repair=ToBudgets(space),
            eliminate_duplicates=True,
        )
        self._ga.setup(self._problem, termination=NoTermination(), seed=int(rng.integers(2**31)), verbose=False)
        self._asked: Any = None

    def propose(self) -> list[Trial]:
        self._asked = self._ga.ask()
        if self._asked is None or not len(self._asked):
            return []
        return [Trial(decode(self.space, x)) for x in self._asked.get("X")]

    def learn(self, trials: Sequence[Trial]) -> None:
        if self._asked is None:
            return  # the starting profiles: they enter with the first population
        values = np.array([[self.known[trial.candidate]] for trial in trials])
        Evaluator().eval(StaticProblem(self._problem, F=np.where(np.isfinite(values), values, 1e300)), self._asked)
        self._ga.tell(infills=self._asked)


class Start(Sampling):
    """The profiles told so far, their mutants, and random ones."""

    def __init__(self, space: SearchSpace, known: dict[Candidate, float]) -> None:
        super().__init__()
        self._space, self._known = space, known

    def _do(self, problem: Any, n_samples: int, *_: Any, random_state: Any = None, **__: Any) -> np.ndarray:
        known = [encode(self._space, candidate) for candidate in sorted(self._known, key=self._known.__getitem__)]
        rows = known[:n_samples]
        while len(rows) < n_samples:
            if known and len(rows) < n_samples // 2 + len(known):
                rows.append(_step(known[0][None], problem.xu, 0.3, random_state)[0])
            else:
                rows.append(random_state.integers(0, problem.xu + 1))
        return np.array(rows)


class Between(Crossover):
    """Every gene of a child comes from one parent, or, for one gene in four, from anywhere between the two."""

    def __init__(self, **options: Any) -> None:
        super().__init__(n_parents=2, n_offsprings=2, **options)

    def _do(self, _problem: Any, X: np.ndarray, *_: Any, random_state: Any = None, **__: Any) -> np.ndarray:
        first, second = X[0], X[1]
        swap = random_state.random(first.shape) < 0.5
        children = np.stack([np.where(swap, second, first), np.where(swap, first, second)])
        low, high = np.minimum(first, second), np.maximum(first, second)
        between = low + np.floor(random_state.random(children.shape) * (high - low + 1)).astype(int)
        return np.where(random_state.random(children.shape) < 0.25, between, children)


class Steps(Mutation):
    """Some genes take a few steps up or down."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share

    def _do(self, problem: Any, X: np.ndarray, *_: Any, random_state: Any = None, **__: Any) -> np.ndarray:
        return _step(X, problem.xu, self._share, random_state)


def _step(genomes: np.ndarray, highest: np.ndarray, share: float, rng: Any) -> np.ndarray:
    """Move each gene with probability `share` by a geometric number of steps (mean two) in a random direction; at least
    one gene of each genome moves."""
    moved = rng.random(genomes.shape) < share
    moved[np.arange(len(genomes)), rng.integers(0, genomes.shape[1], len(genomes))] = True
    steps = rng.geometric(0.5, genomes.shape) * np.where(rng.random(genomes.shape) < 0.5, -1, 1)
    return np.clip(np.where(moved, genomes + steps, genomes), 0, highest).astype(int)


class ToBudgets(Repair):
    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self._space = space

    def _do(self, _problem: Any, X: np.ndarray, **_: Any) -> np.ndarray:
        repaired = (self._space.repair(decode(self._space, np.rint(x))) for x in X)
        return np.array([encode(self._space, candidate) for candidate in repaired])
