import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.compressors.errors import InfeasibleBudgetError, SpaceError
from apportion.search.space.feasibility import check_budgets
from apportion.search.space.repair import repair, uniform
from apportion.search.space.space import SearchSpace
from tests.search.spaces import DEGENERATE, brute_force, make, random_space


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 2), st.floats(0.0, 1.0), st.integers(0, 2**31))
def test_repair_meets_all_budgets_and_leaves_feasible_candidates_alone(
    seed: int, metrics: int, share: float, draw: int
) -> None:
    space = random_space(seed, metrics=metrics, share=share)
    candidate = tuple(np.random.default_rng(draw).integers(space.counts).tolist())
    if not space.feasible(space.cheapest()):
        return
    repaired = repair(space, candidate)
    assert space.feasible(repaired)
    assert repair(space, repaired) == repaired
    if space.feasible(candidate):
        assert repaired == candidate


@pytest.mark.parametrize("name", DEGENERATE)
def test_repair_of_every_candidate_of_degenerate_spaces(name: str) -> None:
    space = DEGENERATE[name]
    check_budgets(space)
    for candidate in np.ndindex(*space.counts):
        assert space.feasible(repair(space, candidate))


def test_repair_comes_near_the_least_error() -> None:
    gaps = []
    for seed in range(50):
        space = random_space(seed)
        best, worst = brute_force(space)[1], space.error((space.counts - 1).tolist())
        gaps.append((space.error(repair(space, (0,) * 5)) - best) / (worst - best))
    assert np.median(gaps) < 0.05


def test_totals_count_the_base() -> None:
    space = make([[4, 2], [6, 3]], [[0, 1], [0, 1]], {"flops": 15}, base=10)
    assert space.total("flops", (1, 0)) == 18
    assert space.dense["flops"] == 20
    assert not space.feasible((1, 0))
    assert space.feasible((1, 1))
    assert space.error((1, 1)) == 2


def test_uniform_is_one_level_for_all_where_the_budgets_allow() -> None:
    space = make([[8, 4, 2, 1], [8, 4, 2, 1]], [[0, 1, 2, 9], [0, 1, 2, 9]], {"flops": 5})
    assert uniform(space) == (2, 2)


def test_uniform_with_layers_that_lack_the_level() -> None:
    space = SearchSpace(
        layers=("a", "b"),
        levels=(("dense", "2:4"), ("dense",)),
        costs={"flops": (np.array([10.0, 5.0]), np.array([2.0]))},
        base={"flops": 0.0},
        dense={"flops": 12.0},
        budgets={"flops": 8.0},
        errors=(np.array([0.0, 1.0]), np.array([0.0])),
    )
    assert uniform(space) == (1, 0)


def test_uniform_channels_are_as_many_as_multiples_allow() -> None:
    """Of a group of 16, in multiples of 8, half of the channels is what half and more leave."""
    names = [
        ("dense", "channels-0.25", "channels-0.50", "channels-0.75"),
        ("dense", "channels-0.50"),
        ("dense", "w8"),
        ("dense", "heads-0.25"),
    ]
    costs = [[1.0, 0.75, 0.5, 0.25], [1.0, 0.5], [1.0, 1.0], [1.0, 0.75]]
    errors = tuple(np.array([0.0, *range(1, len(own))]) for own in names)
    space = SearchSpace(
        layers=("a", "b", "c", "d"),
        levels=tuple(names),
        costs={"flops": tuple(map(np.array, costs))},
        base={"flops": 0.0},
        dense={"flops": 4.0},
        budgets={"flops": 2.8},
        errors=errors,
    )
    assert uniform(space) == (3, 1, 0, 0)  # three quarters


def test_uniform_is_repaired_where_no_level_alone_meets_the_budgets() -> None:
    space = DEGENERATE["two budgets at odds"]
    assert space.feasible(uniform(space))


def test_order_runs_from_least_to_most_compressed() -> None:
    space = make([[4, 1, 3]], [[0, 5, 1]], {"flops": 4})
    assert space.order[0].tolist() == [0, 2, 1]
    assert space.position[0].tolist() == [0, 2, 1]


def test_an_infeasible_budget_names_budget_least_and_layer() -> None:
    space = make([[50, 5], [50, 20]], [[0, 1], [0, 1]], {"flops": 30}, base=10)
    with pytest.raises(InfeasibleBudgetError) as caught:
        check_budgets(space)
    error = caught.value
    assert (error.metric, error.layer) == ("flops", "layer1")
    assert error.bound == pytest.approx(30 / 110)
    assert error.least == pytest.approx(35 / 110)
    assert "0.2727 of the dense model is asked, the levels reach 0.3182" in str(error)


def test_budgets_that_only_fail_together() -> None:
    costs = {"flops": [[9.0, 1.0]], "params": [[1.0, 9.0]]}
    space = make(costs, [[0, 1]], {"flops": 5, "params": 5})
    with pytest.raises(
        InfeasibleBudgetError, match=r"not together: flops and params would have to be 1\.8 times"
    ):
        check_budgets(space)


def test_spaces_that_do_not_fit_together() -> None:
    with pytest.raises(SpaceError, match="one value per layer and level"):
        make([[1, 2], [1]], [[0, 1], [0, 1]], {})
    with pytest.raises(SpaceError, match="layer 'layer0' has a value that is not finite"):
        make([[1, float("nan")]], [[0, 1]], {})
    with pytest.raises(SpaceError, match="budget 'params'"):
        make([[1, 2]], [[0, 1]], {"params": 1})
    with pytest.raises(SpaceError, match="at least one layer"):
        make([], [], {})
    with pytest.raises(SpaceError, match="level index 5, valid are 0 to 1"):
        repair(make([[1, 2]], [[0, 1]], {}), (5,))
