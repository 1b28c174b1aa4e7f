"""Sizes of coupled groups: the optimum is that of trying all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from apportion.compressors.errors import BudgetError
from apportion.search.space.pairwise import Budget, PairCosts, multiples, solve


def instance(seed: int) -> tuple[dict[str, np.ndarray], PairCosts]:
    rng = np.random.default_rng(seed)
    sizes = {g: int(rng.integers(2, 5)) for g in "abcd"}
    losses = {g: np.sort(rng.random(n))[::-1].copy() for g, n in sizes.items()}
    single = {g: np.sort(rng.random(n)) for g, n in sizes.items()}
    pairs = [("a", "b"), ("b", "c"), ("a", "c"), ("c", "d")]
    pair = {
        (g, h): np.outer(1 + np.arange(sizes[g]), 1 + np.arange(sizes[h])) * rng.random()
        for g, h in pairs
    }
    return losses, PairCosts(0.5, single, pair)


@pytest.mark.parametrize("seed", range(12))
def test_the_least_loss_of_all_choices(seed: int) -> None:
    losses, costs = instance(seed)
    choices = [
        dict(zip(losses, own, strict=True))
        for own in itertools.product(*(range(len(row)) for row in losses.values()))
    ]
    totals = sorted(costs.total(own) for own in choices)
    limit = totals[len(totals) // 3]
    other = PairCosts(0.0, {"d": np.array([0.0, *[1.0] * (len(losses["d"]) - 1)])}, {})
    budgets = {"flops": Budget(costs, limit), "params": Budget(other, 0.5)}
    feasible = [
        own for own in choices if costs.total(own) <= limit + 1e-12 and other.total(own) <= 0.5
    ]
    best = min(sum(losses[g][i] for g, i in own.items()) for own in feasible)
    chosen, gap = solve(losses, budgets)
    assert costs.total(chosen) <= limit * (1 + 1e-9)
    assert other.total(chosen) <= 0.5
    assert sum(losses[g][i] for g, i in chosen.items()) == pytest.approx(best, abs=1e-9)
    assert gap <= 1e-9


def test_a_budget_below_the_smallest_sizes_is_named() -> None:
    losses, costs = instance(0)
    with pytest.raises(BudgetError, match="budget 'flops': 0.1 is asked, and the smallest sizes"):
        solve(losses, {"flops": Budget(costs, 0.1)})


def test_budgets_are_hard() -> None:
    """Beyond what the solver takes for equal."""
    costs = PairCosts(single={"a": np.array([1e8 - 500, 1e8])})
    chosen, _ = solve({"a": np.array([1.0, 0.0])}, {"params": Budget(costs, 1e8 - 40)})
    assert chosen == {"a": 0}


def test_without_time_the_smallest_sizes_are_taken() -> None:
    losses, costs = instance(0)
    assert solve(losses, {"flops": Budget(costs, 1e9)}, seconds=0.0)[1] in (0.0, np.inf)


def test_sizes_are_multiples_and_all() -> None:
    assert multiples(64, 16, 1) == [16, 32, 48, 64]
    assert multiples(10, 4, 4) == [4, 8, 10]
    assert multiples(24, 8, 16) == [16, 24]
    assert multiples(3, 8, 1) == [3]
    assert multiples(4096, 8, 1, 64) == [*range(64, 4097, 64)]
