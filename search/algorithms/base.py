"""What every search algorithm is: ask for candidates, be told their fitness. And the registry that finds algorithms by name."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressors.errors import ConfigurationError, UnknownNameError, nearest
from search.moves import draw
from search.space import Candidate, SearchSpace

_BUILT_IN = (
    "abc",
    "aco",
    "anneal",
    "dp",
    "evopress",
    "ga",
    "greedy",
    "local",
    "milp",
    "nsga2",
    "pso",
    "race",
    "random",
    "spdy",
    "spdy-cma",
    "surrogate",
)
_REGISTRY: dict[str, type[Algorithm]] = {}
_ENTRY_POINTS = "apportion.algorithms"
_NEAR = 0.05
_TRIES = 25
"""Candidates made before an algorithm gives up to find a new one."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate to score on the first `fidelity` of the calibration data, in (0, 1]; once told, with its fitness (lower is
    better). A fitness above `bound` is of no more interest: it is told as inf, and scoring stops when that is certain."""

    candidate: Candidate
    fidelity: float = 1.0
    fitness: float | None = None
    bound: float = math.inf


class Algorithm(ABC):
    """Base of all algorithms. It sees a space and a generator, never a model, a pool or a clock.

    The first trials are the uniform profile and the additive optimum, unless `cold`. Subclasses implement `propose` (the next
    feasible candidates; none when finished) and may override `learn`. `known` maps every candidate that was told at full
    fidelity to its fitness.
    """

    def __init__(self, space: SearchSpace, rng: np.random.Generator, evaluations: float, *, cold: bool = False) -> None:
        self.space, self.rng, self.evaluations = space, rng, evaluations
        self.known: dict[Candidate, float] = {}
        self.__incumbent: Candidate | None = None  # a name that no subclass takes
        self._starts = [] if cold else list(dict.fromkeys([space.uniform(), space.optimum]))

    def ask(self) -> list[Trial]:
        """The next trials, feasible under all budgets; an empty list when there are no more. Every ask is followed by a tell
        of the same trials."""
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
        """Hear of a candidate that another algorithm had scored in full; algorithms that go on from `best` go on from it."""
        if candidate not in self.known:
            self._note(candidate, fitness)

    def notes(self) -> dict[str, Any]:
        """What the algorithm has to say of its own course when it has ended, for reports; JSON."""
        return {}

    def fresh(self, make: Callable[[], Candidate], taken: Container[Candidate] = ()) -> Candidate | None:
        """The first candidate of `make` that is neither known nor `taken`; a random one where it keeps making such; None in a
        space that is all but exhausted."""
        for source in (make, lambda: draw(self.space, self.rng)):
            for _ in range(_TRIES):
                if (candidate := source()) not in self.known and candidate not in taken:
                    return candidate
        return None

    def worth_knowing(self, fitness: float) -> float:
        """The bound of a trial that matters only if it beats `fitness`: a little above, because the final pick is made among
        what comes near the best."""
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


def register(name: str) -> Callable[[type[Algorithm]], type[Algorithm]]:
    """Class decorator: make an algorithm available as `name`."""

    def keep(cls: type[Algorithm]) -> type[Algorithm]:
        _REGISTRY[name] = cls
        return cls

    return keep


def names() -> list[str]:
    """All algorithms that can be named: the project's own, registered ones, and those of installed packages."""
    found = {entry.name for entry in importlib.metadata.entry_points(group=_ENTRY_POINTS)}
    return sorted({*_BUILT_IN, *_REGISTRY, *found})


def resolve(name: str) -> type[Algorithm]:
    """The class called `name`: built in, registered, an entry point in the group apportion.algorithms, or `module:Class`.
    Raises UnknownNameError, ConfigurationError."""
    if name in _BUILT_IN:
        importlib.import_module(f"search.algorithms.{name.replace('-', '_')}")
    if name in _REGISTRY:
        return _REGISTRY[name]
    try:
        if ":" in name:
            module, _, attribute = name.partition(":")
            found = getattr(importlib.import_module(module), attribute)
        elif entries := importlib.metadata.entry_points(group=_ENTRY_POINTS, name=name):
            found = next(iter(entries)).load()
        else:
            raise UnknownNameError("algorithm", name, names())
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"algorithm {name!r} cannot be loaded: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise ConfigurationError(f"algorithm {name!r} is not a subclass of search.algorithms.base.Algorithm")
    return found


def create(
    name: str,
    space: SearchSpace,
    rng: np.random.Generator,
    evaluations: float,
    parameters: dict[str, Any] | None = None,
) -> Algorithm:
    """An algorithm with its parameters checked by name and type. Raises UnknownNameError, ConfigurationError."""
    cls = resolve(name)
    _check_parameters(name, cls, parameters or {})
    return cls(space, rng, evaluations, **(parameters or {}))


def _check_parameters(name: str, cls: type[Algorithm], parameters: dict[str, Any]) -> None:
    signature = inspect.signature(cls.__init__).parameters
    hints = typing.get_type_hints(cls.__init__)
    valid = [key for key, value in signature.items() if value.kind is value.KEYWORD_ONLY]
    for key, value in parameters.items():
        if key not in valid:
            close = nearest(key, valid)
            hint = f"; did you mean {close!r}?" if close else ""
            raise ConfigurationError(f"algorithm {name!r} has no parameter {key!r}{hint} (valid: {', '.join(sorted(valid))})")
        wanted = hints.get(key, object)
        if not _fits(value, wanted):
            wanted_name = str(wanted) if typing.get_origin(wanted) else getattr(wanted, "__name__", str(wanted))
            raise ConfigurationError(f"algorithm {name!r}: parameter {key!r} must be {wanted_name}, got {value!r}")


def _fits(value: Any, wanted: Any) -> bool:
    origin = typing.get_origin(wanted)
    if origin is typing.Literal:
        return value in typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(wanted))
    if origin is list:
        return isinstance(value, list) and all(_fits(item, typing.get_args(wanted)[0]) for item in value)
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, wanted)
