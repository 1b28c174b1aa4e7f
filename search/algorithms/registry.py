"""Algorithms by their names: the project's own, those that a user registers, and those of installed
packages."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import numpy as np

from apportion.compressors.errors import ConfigurationError, UnknownNameError, nearest
from apportion.compressors.user_code import load_entry_point, load_object
from apportion.search.algorithms.base import Algorithm
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
    """An algorithm with its parameters checked by name and type. Raises UnknownNameError,
    ConfigurationError."""
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
            raise ConfigurationError(
                f"algorithm {name!r} has no parameter {key!r}{hint} (valid: "
                f"{', '.join(sorted(valid))})"
            )
        wanted = hints.get(key, object)
        if not _fits(value, wanted):
            wanted_name = (
                str(wanted)
                if typing.get_origin(wanted)
                else getattr(wanted, "__name__", str(wanted))
            )
            raise ConfigurationError(
                f"algorithm {name!r}: parameter {key!r} must be {wanted_name}, got {value!r}"
            )


def _fits(value: Any, wanted: Any) -> bool:
    origin = typing.get_origin(wanted)
    if origin is typing.Literal:
        return value in typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(wanted))
    if origin is list:
        return isinstance(value, list) and all(
            _fits(item, typing.get_args(wanted)[0]) for item in value
        )
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, wanted)
