"""Algorithms by their names: the project's own, those that a user registers, and those of installed
packages."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import numpy as np

from apportion.compressors.errors import (
    AlgorithmError,
    ApportionError,
    ConfigurationError,
    UnknownNameError,
    first_line,
)
from apportion.compressors.user_code import load_entry_point, load_object
from apportion.search.algorithms.base import Algorithm
from apportion.search.algorithms.parameters import check_parameters
from apportion.search.space.space import SearchSpace

_BUILT_IN = {
    "abc": "swarm.abc",
    "aco": "swarm.aco",
    "anneal": "anneal",
    "dp": "exact.dp",
    "evopress": "evolution.evopress",
    "ga": "evolution.ga",
    "greedy": "exact.greedy",
    "local": "local",
    "milp": "exact.milp",
    "nsga2": "evolution.nsga2",
    "pso": "swarm.pso",
    "race": "race",
    "random": "random",
    "spdy": "spdy",
    "spdy-cma": "spdy_cma",
    "surrogate": "surrogate",
}
"""Name -> module, below this one's package."""
_REGISTRY: dict[str, type[Algorithm]] = {}
_ENTRY_POINTS = "apportion.algorithms"


def register(name: str) -> Callable[[type[Algorithm]], type[Algorithm]]:
    """Class decorator: make an algorithm available as `name`."""

    def keep(cls: type[Algorithm]) -> type[Algorithm]:
        _REGISTRY[name] = cls
        return cls

    return keep


def names() -> list[str]:
    """All algorithms that can be named: the project's own, registered ones, and those of installed
    packages."""
    found = {entry.name for entry in importlib.metadata.entry_points(group=_ENTRY_POINTS)}
    return sorted({*_BUILT_IN, *_REGISTRY, *found})


def resolve(name: str) -> type[Algorithm]:
    """The class called `name`: built in, registered, an entry point in the group
    apportion.algorithms, or `module:Class`. Raises UnknownNameError, ConfigurationError."""
    if name in _BUILT_IN:
        importlib.import_module(f"apportion.search.algorithms.{_BUILT_IN[name]}")
    if name in _REGISTRY:
        return _REGISTRY[name]
    if ":" in name:
        found = load_object(name, "algorithm")
    elif entries := importlib.metadata.entry_points(group=_ENTRY_POINTS, name=name):
        found = load_entry_point(next(iter(entries)), "algorithm")
    else:
        raise UnknownNameError("algorithm", name, names())
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise ConfigurationError(
            f"algorithm {name!r} is not a subclass of apportion.search.algorithms.base.Algorithm"
        )
    return found


def create(
    name: str,
    space: SearchSpace,
    rng: np.random.Generator,
    evaluations: float,
    parameters: dict[str, Any] | None = None,
) -> Algorithm:
    """An algorithm with its parameters checked by name and type.

    Args:
        name: as a job names it.
        space: what it sees of the problem.
        rng: its own source of randomness.
        evaluations: full evaluations that it may ask for.
        parameters: its own ones, by name.

    Returns:
        The algorithm, which was asked nothing yet.

    Raises:
        UnknownNameError: no algorithm has this name.
        ConfigurationError: the class cannot be loaded, or a parameter makes no sense.
        AlgorithmError: the class raised something of its own.
    """
    cls = resolve(name)
    try:
        check_parameters(name, cls, parameters or {})
        return cls(space, rng, evaluations, **(parameters or {}))
    except ApportionError:
        raise
    except Exception as error:
        raise AlgorithmError(name, f"raised as it was made: {first_line(error)}") from error
