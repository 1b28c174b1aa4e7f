import inspect
import typing
from dataclasses import replace

import numpy as np
import pytest

from apportion.compressors.errors import ConfigurationError, UnknownNameError
from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.parameters import Between
from apportion.search.algorithms.registry import create, names, register, resolve
from tests.contracts.test_algorithm import fitness
from tests.search.spaces import random_space

SPACE = random_space(0)


class Mine(Algorithm):
    """A user's own algorithm."""

    def propose(self) -> list[Trial]:
        return []


def test_the_projects_algorithms_are_there() -> None:
    assert {"dp", "ga", "random", "spdy"} <= set(names())
    for name in names():
        assert issubclass(resolve(name), Algorithm)


def test_a_users_algorithm_by_module_and_class() -> None:
    assert isinstance(
        create("tests.search.test_registry:Mine", SPACE, np.random.default_rng(0), 10), Algorithm
    )


def test_a_users_algorithm_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from apportion.search.algorithms import registry

    monkeypatch.setitem(registry._REGISTRY, "mine", Algorithm)  # so that it goes again
    register("mine")(Mine)
    assert "mine" in names()
    assert resolve("mine") is Mine


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("spy", "unknown algorithm 'spy'; did you mean 'spdy'"),
        ("no.such.module:Class", "cannot be imported"),
        ("apportion.search.space.space:Nothing", "has no 'Nothing'"),
        ("apportion.search.space.space:SearchSpace", "is not a subclass"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises((UnknownNameError, ConfigurationError), match=message):
        resolve(name)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"populaton": 4},
            "algorithm 'ga' has no parameter 'populaton'; did you mean 'population'",
        ),
        ({"population": "many"}, "parameter 'population' must be int, got 'many'"),
        ({"population": True}, "parameter 'population' must be int"),
        ({"space": 1}, "has no parameter 'space'"),
    ],
)
def test_parameters_are_checked_by_name_and_type(
    parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create("ga", SPACE, np.random.default_rng(0), 10, parameters)


def test_choices_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="'prior' must be"):
        create("spdy", SPACE, np.random.default_rng(0), 10, {"prior": "cubic"})


RANGED = [
    (name, key, bounds[0])
    for name in names()
    for key, hint in typing.get_type_hints(resolve(name).__init__, include_extras=True).items()
    if (bounds := [b for b in getattr(hint, "__metadata__", ()) if isinstance(b, Between)])
]


def test_every_number_of_ours_has_a_range() -> None:
    plain = [
        (name, key)
        for name in names()
        for key, value in inspect.signature(resolve(name).__init__).parameters.items()
        if value.kind is value.KEYWORD_ONLY
        and type(value.default) in (int, float)
        and (name, key) not in [ranged[:2] for ranged in RANGED]
    ]
    assert not plain
    assert len(RANGED) > 25


@pytest.mark.parametrize(("name", "key", "bounds"), RANGED)
def test_numbers_out_of_range_are_refused(name: str, key: str, bounds: Between) -> None:
    for value in (bounds.least - 1, -5, bounds.most + 1, 10**9, 10**400):
        with pytest.raises(
            ConfigurationError, match=f"'{name}': parameter '{key}' must lie between"
        ):
            create(name, SPACE, np.random.default_rng(0), 10, {key: int(value)})


@pytest.mark.parametrize(("name", "key", "bounds"), RANGED)
def test_the_least_of_every_number_works(name: str, key: str, bounds: Between) -> None:
    least = bounds.least
    value = int(least) if float(least).is_integer() else least
    algorithm = create(name, SPACE, np.random.default_rng(0), 30, {key: value})
    for _ in range(8):
        if not (asked := algorithm.ask()):
            break
        algorithm.tell([replace(t, fitness=fitness(SPACE, t.candidate)) for t in asked])
    assert algorithm.known
