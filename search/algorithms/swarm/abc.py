"""abc: artificial bee colony."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.learned import LearnedErrors
from apportion.search.algorithms.parameters import Count, Several, Weight
from apportion.search.algorithms.registry import register
from apportion.search.space.moves import begin, encode, spent
from apportion.search.space.space import Candidate, SearchSpace


@register("abc")
class BeeColony(Algorithm):
    """Karaboga 2005: `sources` profiles. Employed bees try a neighbour of each (v = x + phi (x -
    x_k), eq. 2.2, in a few layers) that is drawn to the best one as well (+ psi (best - x), psi up
    to `guide`: Zhu & Kwong 2010); onlookers do so at sources drawn by their fitness rank; a source
    that `limit` trials in a row did not improve (by default sources x layers, the usual formula) is
    left to a scout, who draws a random one. All are repaired and filled by learnt errors."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        sources: Several = 4,
        limit: Count | None = None,
        guide: Weight = 1.5,
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        self._count, self._guide = sources, guide
        self._limit = sources * len(space.layers) if limit is None else limit
        self._errors = LearnedErrors(space)
        self._sources: list[Candidate] = []
        self._failures: list[int] = []
        self._asked: dict[
            Candidate, tuple[int, bool]
        ] = {}  # which source it is for, and whether a scout found it
        self._employed = True

    def propose(self) -> list[Trial]:
        self._asked = {}
        if not self._sources:
            self._sources = sorted(self.known, key=self.known.__getitem__)[: self._count // 2]
            self._failures = [0] * self._count
            for k in range(len(self._sources), self._count):
                self._send(k, scout=True)
            self._sources += list(self._asked)
            if self._asked:
                return [Trial(candidate) for candidate in self._asked]
        best = min(range(len(self._sources)), key=self._fitness)
        if self._employed:
            for k in range(len(self._sources)):
                self._send(k, scout=self._failures[k] >= self._limit and k != best)
        else:
            rank = np.argsort(
                np.argsort([self._fitness(k) for k in range(len(self._sources))], kind="stable")
            )
            share = (
                0.75**rank
            )  # the paper's fit_i / sum fit, made independent of the fitness's scale
            for k in self.rng.choice(len(share), len(share), p=share / share.sum()):
                self._send(int(k), scout=False)
        self._employed = not self._employed
        return [Trial(candidate) for candidate in self._asked]

    def learn(self, trials: Sequence[Trial]) -> None:
        self._errors.learn(trials)
        for trial in trials:
            if trial.candidate not in self._asked:
                continue
            k, scout = self._asked[trial.candidate]
            if scout or self.known[trial.candidate] < self._fitness(k):
                self._sources[k], self._failures[k] = trial.candidate, 0
            else:
                self._failures[k] += 1

    def _fitness(self, k: int) -> float:
        return self.known.get(self._sources[k], np.inf)

    def _send(self, k: int, scout: bool) -> None:
        widths = itertools.count(3)  # neighbours that are known already lie too near
        candidate = self.fresh(
            (lambda: begin(self.space, self.rng, self._errors.table))
            if scout
            else (lambda: self._neighbour(k, next(widths))),
            self._asked,
        )
        if candidate is not None:
            self._asked[candidate] = (k, scout)

    def _neighbour(self, k: int, width: int) -> Candidate:
        """A neighbour of source `k` in up to `width` layers."""
        here = encode(self.space, self._sources[k]).astype(np.float64)
        other = encode(self.space, self._sources[int(self.rng.integers(len(self._sources)))])
        chosen = self.rng.choice(
            len(here), min(len(here), int(self.rng.integers(1, width + 1))), replace=False
        )
        moved = self.rng.uniform(-1, 1, len(chosen)) * np.abs(here[chosen] - other[chosen])
        best = encode(self.space, self.best())[chosen]
        moved += self.rng.uniform(0, self._guide, len(chosen)) * (best - here[chosen])
        least = self.rng.choice([-1.0, 1.0], len(chosen))  # sources that agree would stand still
        here[chosen] += np.where(np.abs(moved) < 0.5, least, moved)
        return spent(self.space, here, self._errors.table)
