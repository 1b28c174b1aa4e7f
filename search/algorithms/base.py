"""What every search algorithm is: ask for candidates, be told their fitness. And the registry that
finds algorithms by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apportion.compressors.errors import ConfigurationError
from apportion.search.space.additive import optimum
from apportion.search.space.moves import draw
from apportion.search.space.repair import uniform
from apportion.search.space.space import Candidate, SearchSpace

_NEAR = 0.05
_TRIES = 25
"""Candidates made before an algorithm gives up to find a new one."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate to score on the first `fidelity` of the calibration data, in (0, 1]; once told,
    with its fitness (lower is better). A fitness above `bound` is of no more interest: it is told
    as inf, and scoring stops when that is certain."""

    candidate: Candidate
    fidelity: float = 1.0
    fitness: float | None = None
    bound: float = math.inf


class Algorithm(ABC):
    """Base of all algorithms. It sees a space and a generator, never a model, a pool or a clock.

    The first trials are the uniform profile and the additive optimum, unless `cold`. Subclasses
    implement `propose` (the next feasible candidates; none when finished) and may override `learn`.
    `known` maps every candidate that was told at full fidelity to its fitness."""

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        evaluations: float,
        *,
        cold: bool = False,
    ) -> None:
        self.space, self.rng, self.evaluations = space, rng, evaluations
        self.known: dict[Candidate, float] = {}
        self.__incumbent: Candidate | None = None  # a name that no subclass takes
        self._starts = [] if cold else list(dict.fromkeys([uniform(space), optimum(space)]))

    def ask(self) -> list[Trial]:
        """The next trials, feasible under all budgets; an empty list when there are no more. Every
        ask is followed by a tell of the same trials."""
        if self._starts:
            starts, self._starts = self._starts, []
            return [Trial(candidate) for candidate in starts]
        return self.propose()

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take the fitness of what was asked, in asked order. What is given is not changed."""
        for trial in trials:
            if trial.fitness is None:
                raise ConfigurationError("a trial must be told with its fitness")
            if trial.fidelity == 1.0:
                self._note(trial.candidate, trial.fitness)
        self.learn(trials)

    @abstractmethod
    def propose(self) -> list[Trial]:
        """The next trials after the starting profiles."""

    def learn(self, trials: Sequence[Trial]) -> None:  # noqa: B027 - most algorithms need `known` alone
        """Called by `tell` with every batch, the starting profiles included."""

    def inform(self, candidate: Candidate, fitness: float) -> None:
        """Hear of a candidate that another algorithm had scored in full; algorithms that go on from
        `best` go on from it."""
        if candidate not in self.known:
            self._note(candidate, fitness)

    def begin_with(self, candidates: Sequence[Candidate]) -> None:
        """Further profiles to ask for at the beginning, after the starting ones; also where those
        are left out."""
        self._starts = list(dict.fromkeys([*self._starts, *candidates]))

    def notes(self) -> dict[str, Any]:
        """What the algorithm has to say of its own course when it has ended, for reports; JSON."""
        return {}

    def fresh(
        self, make: Callable[[], Candidate], taken: Container[Candidate] = ()
    ) -> Candidate | None:
        """The first candidate of `make` that is neither known nor `taken`; a random one where it
        keeps making such; None in a space that is all but exhausted."""
        for source in (make, lambda: draw(self.space, self.rng)):
            for _ in range(_TRIES):
                if (candidate := source()) not in self.known and candidate not in taken:
                    return candidate
        return None

    def worth_knowing(self, fitness: float) -> float:
        """The bound of a trial that matters only if it beats `fitness`: a little above, because the
        final pick is made among what comes near the best."""
        return fitness + _NEAR * abs(fitness)

    def best(self) -> Candidate:
        """The best candidate told so far; the earliest where several are equal."""
        if self.__incumbent is None:
            self.__incumbent = min(self.known, key=self.known.__getitem__)
        return self.__incumbent

    def _note(self, candidate: Candidate, fitness: float) -> None:
        if candidate in self.known or self.__incumbent is None:
            self.__incumbent = None  # told anew: `best` looks at all
        elif fitness < self.known[self.__incumbent]:
            self.__incumbent = candidate
        self.known[candidate] = fitness
