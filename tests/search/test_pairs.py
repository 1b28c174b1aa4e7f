"""Costs that couple layers in pairs: what is counted is what trying all counts, and every solver
meets the budgets under it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.compressors.errors import InfeasibleBudgetError, SpaceError
from apportion.search.space.additive import approximate, optimum
from apportion.search.space.decisions import Decisions
from apportion.search.space.feasibility import check_budgets
from apportion.search.space.majorant import linearised, majorant
from apportion.search.space.milp import least_profile, least_stretch, milp
from apportion.search.space.moves import steps
from apportion.search.space.repair import fill, repair, uniform
from apportion.search.space.space import Candidate, SearchSpace
from tests.search.spaces import brute_force, coupled_space, make, random_space

SEEDS = st.integers(0, 10_000)


def counted(space: SearchSpace, metric: str, candidate: Candidate) -> float:
    """A cost, one term after the other."""
    total = space.base[metric]
    for layer, level in enumerate(candidate):
        total += float(space.costs[metric][layer][level])
        for other in range(layer):
            if (table := space.pairs[metric].get((other, layer))) is not None:
                total += float(table[candidate[other], level])
    return total


def meets(space: SearchSpace, candidate: Candidate) -> bool:
    return all(
        counted(space, metric, candidate) <= bound * (1 + 1e-9)
        for metric, bound in space.budgets.items()
    )


def loaded(space: SearchSpace, candidate: Candidate) -> list[float]:
    """What `loads` are to be, by the definition of `limits`."""
    return [
        (counted(space, metric, candidate) - space.base[metric]) / (bound - space.base[metric])
        for metric, bound in space.budgets.items()
    ]


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 2), st.booleans())
def test_what_is_counted(seed: int, metrics: int, odd: bool) -> None:
    space = coupled_space(seed, metrics=metrics, odd=odd)
    rng = np.random.default_rng(seed)
    candidates = rng.integers(space.counts, size=(6, len(space.layers)))
    assert space.limits.tolist() == [1.0] * metrics
    together = space.loads_of(candidates)
    looked = rng.integers(len(space.layers), size=(6, 3))
    rises = space.load_changes(candidates, looked)
    for n, row in enumerate(candidates):
        candidate: Candidate = tuple(row.tolist())
        for metric in space.budgets:
            assert space.total(metric, candidate) == pytest.approx(
                counted(space, metric, candidate)
            )
        wanted = loaded(space, candidate)
        assert space.loads(candidate) == pytest.approx(wanted)
        assert together[:, n] == pytest.approx(wanted)
        assert space.feasible(candidate) == meets(space, candidate)
        changed = space.changed_loads(candidate, space.loads(candidate))
        for layer, count in enumerate(space.counts):
            assert np.isinf(changed[:, layer, count:]).all()
            for level in range(count):
                other = (*candidate[:layer], level, *candidate[layer + 1 :])
                assert changed[:, layer, level] == pytest.approx(loaded(space, other))
                for k in np.flatnonzero(looked[n] == layer):
                    rise = np.subtract(loaded(space, other), wanted)
                    assert rises[:, n, k, level] == pytest.approx(rise, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.booleans())
def test_the_majorant_is_never_below_and_equal_where_it_was_made(seed: int, odd: bool) -> None:
    space = coupled_space(seed, layers=4, metrics=2, odd=odd)
    about = tuple(np.random.default_rng(seed).integers(space.counts).tolist())
    layers = np.arange(4)
    for b in range(2):
        table = majorant(space, b, about)
        for candidate in np.ndindex(*space.counts):
            assert table[layers, candidate].sum() >= space.loads(candidate)[b] - 1e-9
        assert table[layers, about].sum() == pytest.approx(space.loads(about)[b])
        assert not np.isnan(table).any()
        first = linearised(space, b, about)
        for layer, count in enumerate(space.counts):
            for level in range(count):
                other = (*about[:layer], level, *about[layer + 1 :])
                assert first[layers, other].sum() == pytest.approx(space.loads(other)[b])


def test_the_majorant_of_a_product_is_the_sum_of_squares() -> None:
    kept = np.arange(64.0, 0, -1)
    space = make(
        [[0] * 64, [0] * 64],
        [[0] * 64] * 2,
        {"flops": 1024},
        pairs={"flops": {(0, 1): np.outer(kept, kept)}},
    )
    table = majorant(space, 0, (32, 32)) * 1024
    assert table[0] == pytest.approx(kept**2 / 2, abs=1)
    assert table[1] == pytest.approx(kept**2 / 2, abs=1)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.integers(1, 2), st.floats(0.05, 0.9), st.booleans())
def test_the_optimum_is_that_of_trying_all(
    seed: int, metrics: int, share: float, odd: bool
) -> None:
    space = coupled_space(seed, layers=4, metrics=metrics, share=share, odd=odd)
    if not any(space.feasible(candidate) for candidate in np.ndindex(*space.counts)):
        with pytest.raises(SpaceError, match="no candidate meets all budgets"):
            milp(space)
        with pytest.raises(InfeasibleBudgetError):
            check_budgets(space)
        return
    check_budgets(space)
    best = brute_force(space)[1]
    found = milp(space)
    assert meets(space, found.candidate)
    assert found.error == pytest.approx(best, abs=1e-9)
    assert found.bound <= best + 1e-9
    assert found.gap == pytest.approx(0.0, abs=1e-6)
    assert space.error(optimum(space)) == pytest.approx(best, abs=1e-9)
    assert least_stretch(space) <= 1 + 1e-6


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.integers(1, 2), st.booleans())
def test_everything_that_is_made_meets_the_budgets(seed: int, metrics: int, odd: bool) -> None:
    space = coupled_space(seed, layers=7, levels=6, metrics=metrics, odd=odd)
    if milp_fails(space):
        return
    rng = np.random.default_rng(seed)
    for _ in range(5):
        asked = tuple(rng.integers(space.counts).tolist())
        repaired = repair(space, asked)
        assert meets(space, repaired)
        assert not meets(space, asked) or repaired == asked
        filled = fill(space, repaired)
        assert meets(space, filled)
        assert space.error(filled) <= space.error(repaired)
        weights = np.exp(rng.normal(size=(7, 1)))
        assert meets(space, approximate(space, space.error_table * weights))
    assert meets(space, uniform(space))
    parents = np.resize(np.array(uniform(space)), (40, 7))
    made = steps(space, rng, parents)
    assert all(meets(space, tuple(row)) for row in made.tolist())
    assert len(made)


def milp_fails(space: SearchSpace) -> bool:
    try:
        milp(space)
    except SpaceError:
        return True
    return False


def test_additive_bounds_come_near_the_optimum() -> None:
    """The dynamic program on majorants alone, against the proof."""
    gaps = []
    for seed in range(12):
        space = coupled_space(seed, layers=10, levels=8, metrics=1 + seed % 2)
        best = milp(space).error
        gaps.append(space.error(approximate(space, space.error_table)) / best - 1)
    assert np.median(gaps) < 0.02
    assert max(gaps) < 0.2


@pytest.mark.parametrize("metrics", [1, 2])
def test_pairs_of_zeros_change_nothing(metrics: int) -> None:
    space = random_space(3, layers=6, levels=5, metrics=metrics)
    pairs = {m: {(0, 1): np.zeros((5, 5)), (2, 4): np.zeros((5, 5))} for m in space.costs}
    other = dataclasses.replace(space, pairs=pairs)
    candidates = np.random.default_rng(0).integers(5, size=(20, 6))
    for row in candidates.tolist():
        assert repair(other, row) == repair(space, row)
        assert other.loads(row).tolist() == space.loads(row).tolist()
    assert milp(other) == milp(space)
    assert other.order_table.tolist() == space.order_table.tolist()


def test_order_counts_pairs() -> None:
    space = make(
        [[0, 0, 0], [0, 0]],
        [[0, 1, 2], [0, 1]],
        {"flops": 100},
        pairs={"flops": {(0, 1): np.outer([4.0, 1, 2], [3, 1])}},
    )
    assert space.order[0].tolist() == [0, 2, 1]
    assert space.cheapest() == (1, 1)
    assert least_profile(space, 0) == (1, 1)


def test_the_cheapest_profile_of_any_tables_is_found_by_the_program() -> None:
    for seed in range(10):
        space = coupled_space(seed, layers=4, odd=True)
        least = min(space.loads(c)[0] for c in np.ndindex(*space.counts))
        assert space.loads(least_profile(space, 0))[0] == pytest.approx(least, abs=1e-9)


def test_a_budget_that_cannot_be_met_says_what_can() -> None:
    pairs = {"flops": {(0, 1): np.outer([10.0, 5], [10, 4])}}
    space = make([[0, 0], [0, 0]], [[0, 1], [0, 1]], {"flops": 25}, base=10, pairs=pairs)
    with pytest.raises(
        InfeasibleBudgetError,
        match=r"0\.2273 of the dense model is asked, the levels reach 0\.2727 at the least; layer "
        r"'layer0' and those it is coupled to take 0\.1818 at their cheapest level",
    ) as caught:
        check_budgets(space)
    assert caught.value.least == pytest.approx(30 / 110)


def test_budgets_of_pairs_that_only_fail_together() -> None:
    pairs = {
        "flops": {(0, 1): np.outer([3.0, 1], [3, 1])},
        "params": {(0, 1): np.outer([1.0, 3], [1, 3])},
    }
    costs: dict[str, list[list[float]]] = {"flops": [[0, 0]] * 2, "params": [[0, 0]] * 2}
    space = make(costs, [[0, 1], [0, 1]], {"flops": 2, "params": 2}, pairs=pairs)
    with pytest.raises(InfeasibleBudgetError, match=r"flops and params would have to be 1\.5 time"):
        check_budgets(space)


def test_very_many_levels_are_refined(monkeypatch: pytest.MonkeyPatch) -> None:
    gaps = []
    for seed in range(4):
        space = coupled_space(seed, layers=6, levels=14, metrics=1 + seed % 2)
        proven = milp(space)
        assert proven.gap == 0
        with monkeypatch.context() as patch:
            patch.setattr("apportion.search.space.milp._COLUMNS", 400)
            patch.setattr("apportion.search.space.milp._SOME", 400)
            found = milp(space)
        assert meets(space, found.candidate)
        assert found.error == pytest.approx(space.error(found.candidate))
        assert found.gap == np.inf
        gaps.append(found.error / proven.error - 1)
    assert min(gaps) >= -1e-9
    assert max(gaps) < 0.1


def test_budgets_are_hard() -> None:
    """Beyond what the solver takes for equal."""
    table = np.array([[1e8, 1e8 - 20], [1e8 - 500, 1e8 - 600]])
    space = make(
        {"params": [[0.0, 0.0], [0.0, 0.0]]},
        [[0, 1], [0, 0.1]],
        {"params": 1e8 - 40},
        pairs={"params": {(0, 1): table}},
    )
    assert milp(space).candidate == (1, 0)


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.booleans())
def test_ties_and_restricted_choices_carry_pairs(seed: int, odd: bool) -> None:
    space = coupled_space(seed, layers=6, levels=4, metrics=2, odd=odd)
    rng = np.random.default_rng(seed)
    order = rng.permutation(6)
    groups = [order[:2].tolist(), order[2:5].tolist(), order[5:].tolist()]
    allowed = [sorted({0, int(rng.integers(count))}) for count in space.counts]
    decisions = Decisions.make(space, allowed, groups)
    small = decisions.reduce(space)
    for choice in np.ndindex(*small.counts):
        expanded = decisions.expand(choice)
        for metric in space.budgets:
            assert small.total(metric, choice) == pytest.approx(counted(space, metric, expanded))
        assert small.loads(choice) == pytest.approx(space.loads(expanded))


def test_tables_that_do_not_fit() -> None:
    def space(**pairs: dict[tuple[int, int], np.ndarray]) -> SearchSpace:
        return make([[1, 2], [1, 2]], [[0, 1], [0, 1]], {"flops": 9}, pairs=pairs)

    with pytest.raises(SpaceError, match="pairs of 'flops': layers 'layer0' and 'layer1' need a"):
        space(flops={(0, 1): np.zeros((2, 3))})
    with pytest.raises(SpaceError, match="'layer1' have a value that is not finite"):
        space(flops={(0, 1): np.full((2, 2), np.nan)})
    with pytest.raises(SpaceError, match=r"\(1, 0\) are not two of the 2 layers, the lower number"):
        space(flops={(1, 0): np.zeros((2, 2))})
    with pytest.raises(SpaceError, match="pairs of 'bits': the layers' own costs are needed"):
        space(bits={(0, 1): np.zeros((2, 2))})
