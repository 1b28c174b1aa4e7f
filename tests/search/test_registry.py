import numpy as np
import pytest

from apportion.compressors.errors import ConfigurationError, UnknownNameError
from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.registry import create, names, register, resolve
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
