import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.compressors.errors import SpaceError
from apportion.search.space.additive import approximate, dynamic_program, optimum
from apportion.search.space.milp import least_stretch, milp
from tests.search.spaces import DEGENERATE, brute_force, make, random_space


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_the_optimum_is_exact_for_one_budget(seed: int, share: float) -> None:
    space = random_space(seed, share=share)
    candidate = optimum(space)
    assert space.feasible(candidate)
    assert space.error(candidate) == pytest.approx(brute_force(space)[1], abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 2))
def test_milp_is_exact_and_proves_it(seed: int, metrics: int) -> None:
    space = random_space(seed, metrics=metrics)
    solution = milp(space)
    best = brute_force(space)[1]
    assert space.feasible(solution.candidate)
    assert solution.error == pytest.approx(best, abs=1e-9)
    assert solution.bound <= best + 1e-9
    assert space.error(optimum(space)) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_spaces(name: str) -> None:
    space = DEGENERATE[name]
    best = brute_force(space)[1]
    assert space.error(optimum(space)) == pytest.approx(best)
    assert space.error(milp(space).candidate) == pytest.approx(best)
    assert space.feasible(approximate(space, space.error_table))


@pytest.mark.parametrize("buckets", [3, 10, 100])
def test_coarse_buckets_round_costs_up_so_that_the_budget_holds(buckets: int) -> None:
    for seed in range(40):
        space = random_space(seed, layers=7)
        assert space.feasible(dynamic_program(space, space.error_table, buckets=buckets))


def test_ten_thousand_buckets_come_near_the_proven_optimum() -> None:
    rng = np.random.default_rng(0)
    costs = [np.sort(rng.random(30) * rng.uniform(1, 100))[::-1].tolist() for _ in range(40)]
    errors = [np.sort(rng.exponential(size=30)).tolist() for _ in range(40)]
    space = make(costs, errors, {"flops": 0.4 * sum(row[0] for row in costs)})
    proven = milp(space)
    assert space.error(dynamic_program(space, space.error_table)) <= proven.error * 1.005
    assert space.error(optimum(space)) == pytest.approx(proven.error)
    assert proven.bound <= proven.error + 1e-9


def test_no_feasible_candidate_is_an_error() -> None:
    with pytest.raises(SpaceError, match="no candidate meets all budgets"):
        milp(make([[5, 3]], [[0, 1]], {"flops": 2}))


def test_least_stretch_of_a_feasible_space_is_at_most_one() -> None:
    assert least_stretch(random_space(1, metrics=2)) <= 1
