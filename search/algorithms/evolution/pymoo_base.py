"""What the algorithms that wrap pymoo share: the genome (a layer's position between its least and
its most compressed level), its operators, and pymoo's ask and tell (Blank & Deb 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pymoo.core.crossover import Crossover
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.sampling import Sampling
from pymoo.core.termination import NoTermination
from pymoo.problems.static import StaticProblem

from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.space.moves import decode, encode
from apportion.search.space.repair import repair
from apportion.search.space.space import Candidate, SearchSpace

_UNUSABLE = 1e300
"""Stands in for a fitness that is not finite."""


class Evolution(Algorithm):
    """A pymoo algorithm of class `kind`; `metrics` are objectives beside the fitness. Infeasible
    offspring are repaired, never rejected."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        cold: bool,
        kind: type,
        share: float,
        metrics: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        self._metrics = metrics
        highest = space.counts - 1
        count = len(highest)
        self._problem = Problem(
            n_var=count, n_obj=1 + len(metrics), xl=np.zeros(count), xu=highest, vtype=int
        )
        operators = {
            "sampling": Start(space, self.known),
            "crossover": Between(prob=0.9),
            "mutation": Steps(share),
            "repair": ToBudgets(space),
            "eliminate_duplicates": True,
        }
        self._pymoo = kind(**operators | options)
        self._pymoo.setup(
            self._problem, termination=NoTermination(), seed=int(rng.integers(2**31)), verbose=False
        )
        self._asked: Any = None

    def propose(self) -> list[Trial]:
        self._asked = self._pymoo.ask()
        if self._asked is None or not len(self._asked):
            return []
        return [Trial(decode(self.space, x)) for x in self._asked.get("X")]

    def learn(self, trials: Sequence[Trial]) -> None:
        if self._asked is None:
            return  # the starting profiles: they enter with the first population
        rows = [
            (min(self.known[t.candidate], _UNUSABLE), *self._costs(t.candidate)) for t in trials
        ]
        Evaluator().eval(StaticProblem(self._problem, F=np.array(rows)), self._asked)
        self._pymoo.tell(infills=self._asked)

    def _costs(self, candidate: Candidate) -> list[float]:
        return [
            self.space.total(metric, candidate) / self.space.dense[metric]
            for metric in self._metrics
        ]


class Start(Sampling):
    """The profiles told so far, their mutants, and random ones."""

    def __init__(self, space: SearchSpace, known: dict[Candidate, float]) -> None:
        super().__init__()
        self._space, self._known = space, known

    def _do(
        self, problem: Any, n_samples: int, *_: Any, random_state: Any = None, **__: Any
    ) -> np.ndarray:
        known = [
            encode(self._space, candidate)
            for candidate in sorted(self._known, key=self._known.__getitem__)
        ]
        rows = known[:n_samples]
        while len(rows) < n_samples:
            if known and len(rows) < n_samples // 2 + len(known):
                rows.append(_step(known[0][None], problem.xu, 0.3, random_state)[0])
            else:
                rows.append(random_state.integers(0, problem.xu + 1))
        return np.array(rows)


class Between(Crossover):
    """Every gene of a child comes from one parent, or, for one gene in four, from anywhere between
    the two."""

    def __init__(self, **options: Any) -> None:
        super().__init__(n_parents=2, n_offsprings=2, **options)

    def _do(
        self, _problem: Any, X: np.ndarray, *_: Any, random_state: Any = None, **__: Any
    ) -> np.ndarray:
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

    def _do(
        self, problem: Any, X: np.ndarray, *_: Any, random_state: Any = None, **__: Any
    ) -> np.ndarray:
        return _step(X, problem.xu, self._share, random_state)


def _step(genomes: np.ndarray, highest: np.ndarray, share: float, rng: Any) -> np.ndarray:
    """Move each gene with probability `share` by a geometric number of steps (mean two) in a random
    direction; at least one gene of each genome moves."""
    moved = rng.random(genomes.shape) < share
    moved[np.arange(len(genomes)), rng.integers(0, genomes.shape[1], len(genomes))] = True
    steps = rng.geometric(0.5, genomes.shape) * np.where(rng.random(genomes.shape) < 0.5, -1, 1)
    return np.clip(np.where(moved, genomes + steps, genomes), 0, highest).astype(int)


class ToBudgets(Repair):
    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self._space = space

    def _do(self, _problem: Any, X: np.ndarray, **_: Any) -> np.ndarray:
        repaired = (repair(self._space, decode(self._space, np.rint(x))) for x in X)
        return np.array([encode(self._space, candidate) for candidate in repaired])
