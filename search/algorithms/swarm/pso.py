"""pso: particle swarm over level positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.learned import LearnedErrors
from apportion.search.algorithms.parameters import Count, Share, Weight
from apportion.search.algorithms.registry import register
from apportion.search.space.moves import begin, encode, spent, step
from apportion.search.space.space import Candidate, SearchSpace


@register("pso")
class ParticleSwarm(Algorithm):
    """Kennedy & Eberhart 1995 with Shi & Eberhart's `inertia` (1998), `own` and `social` pull: real
    positions per layer, rounded, repaired and filled by learnt errors to be scored; a particle goes
    on from what was scored. `speed`: the largest move of one layer, as a share of its levels. A
    particle takes a paired level step on top with probability `turbulence`, and where it arrives at
    a profile that is known."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
        particles: Count = 16,
        inertia: Weight = 0.5,
        own: Weight = 1.5,
        social: Weight = 1.5,
        speed: Share = 0.25,
        turbulence: Share = 0.5,
    ) -> None:
        super().__init__(space, rng, evaluations, cold=cold)
        self._count, self._inertia, self._own, self._social = particles, inertia, own, social
        self._turbulence, self._errors = turbulence, LearnedErrors(space)
        self._limit = np.maximum(1.0, speed * (space.counts - 1))
        self._x = np.zeros((0, len(space.layers)))
        self._v = np.zeros_like(self._x)
        self._best: list[Candidate] = []
        self._asked: dict[Candidate, int] = {}

    def propose(self) -> list[Trial]:
        if not len(self._x):
            return self._begin()
        leader = encode(self.space, self.best())
        self._asked = {}
        for k in range(len(self._x)):
            mine = encode(self.space, self._best[k])
            a, b = self.rng.random((2, len(leader)))
            pull = self._own * a * (mine - self._x[k]) + self._social * b * (leader - self._x[k])
            self._v[k] = np.clip(self._inertia * self._v[k] + pull, -self._limit, self._limit)
            there = spent(self.space, self._x[k] + self._v[k], self._errors.table)
            if self.rng.random() < self._turbulence:
                there = self._step(there)
            first = [there]
            candidate = self.fresh(
                lambda: first.pop() if first else self._step(there),  # noqa: B023
                self._asked,
            )
            if candidate is not None:
                self._asked[candidate] = k
        return [Trial(candidate) for candidate in self._asked]

    def _step(self, candidate: Candidate) -> Candidate:
        return step(self.space, self.rng, candidate, errors=self._errors.table)

    def learn(self, trials: Sequence[Trial]) -> None:
        self._errors.learn(trials)
        for trial in trials:
            k = self._asked.get(trial.candidate)
            if k is None:
                continue
            self._x[k] = encode(self.space, trial.candidate)
            if self.known[trial.candidate] < self.known.get(self._best[k], np.inf):
                self._best[k] = trial.candidate

    def _begin(self) -> list[Trial]:
        """The swarm: the profiles told so far, and random ones, with random speeds."""
        swarm = dict.fromkeys(sorted(self.known, key=self.known.__getitem__)[: self._count // 2])
        self._asked = {}
        while len(swarm) < self._count:
            candidate = self.fresh(lambda: begin(self.space, self.rng, self._errors.table), swarm)
            if candidate is None:
                break
            self._asked[candidate] = len(swarm)
            swarm[candidate] = None
        self._best = list(swarm)
        self._x = np.array([encode(self.space, c) for c in swarm], dtype=np.float64).reshape(
            len(swarm), -1
        )
        self._v = self.rng.uniform(-self._limit, self._limit, self._x.shape)
        return [Trial(candidate) for candidate in self._asked]
