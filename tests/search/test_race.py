import numpy as np
import pytest

from apportion.compressors.errors import ConfigurationError
from apportion.search.algorithms.race import Race
from apportion.search.algorithms.registry import create
from tests.contracts.test_algorithm import drive
from tests.search.spaces import random_space

SPACE = random_space(5, layers=8, levels=6)


@pytest.mark.parametrize("name", ["ga", "spdy", "evopress", "anneal", "surrogate"])
def test_a_race_of_one_is_that_algorithm(name: str) -> None:
    race = drive(
        create("race", SPACE, np.random.default_rng(3), 60, {"cold": True, "algorithms": [name]}),
        60,
    )
    (own,) = np.random.default_rng(3).spawn(1)
    assert race == drive(create(name, SPACE, own, 60, {"cold": True}), 60)


def test_the_better_half_goes_on_and_all_share_what_was_found() -> None:
    race = Race(
        SPACE, np.random.default_rng(0), 240, algorithms=["ga", "local", "random", "anneal"]
    )
    told = drive(race, 240)
    assert len(told) == 240
    assert len(race._running) == 1
    for rival in race._rivals.values():
        assert min(rival.known.values()) == min(race.known.values())
    start = max(trial.fitness for trial in told[:2] if trial.fitness is not None)
    assert sum(race.earned.values()) <= start - min(race.known.values()) + 1e-12
    assert all(earned >= 0 for earned in race.earned.values())


@pytest.mark.parametrize("algorithms", [[], ["race"], ["ga", "ga"]])
def test_what_is_no_race(algorithms: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="'race': parameter 'algorithms'"):
        create("race", SPACE, np.random.default_rng(0), 10, {"algorithms": algorithms})
