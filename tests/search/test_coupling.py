"""Sizes of channel groups as a search space: it counts what the groups' costs count."""

from __future__ import annotations

import numpy as np
import pytest

from apportion.evaluators.costs.channels.counts import ChannelCosts, Side, Term
from apportion.search.runs.coupling import channel_space, multiples
from apportion.search.space.milp import milp
from tests.search.spaces import brute_force

SIZES = {"a": [1, 2, 4], "b": [3, 6], "c": [1, 2, 5]}


def random_costs(seed: int) -> ChannelCosts:
    rng = np.random.default_rng(seed)

    def side() -> Side:
        groups = rng.permutation(list(SIZES))[: int(rng.integers(3))].tolist()
        return Side(int(rng.integers(4)), {g: int(rng.integers(1, 5)) for g in groups})

    def terms() -> tuple[Term, ...]:
        return tuple(Term(int(rng.integers(1, 9)), side(), side()) for _ in range(6))

    return ChannelCosts({"flops": terms(), "params": terms()})


@pytest.mark.parametrize("seed", range(8))
def test_it_counts_what_the_terms_count(seed: int) -> None:
    costs = random_costs(seed)
    whole = {g: own[-1] for g, own in SIZES.items()}
    losses = {g: np.linspace(1, 0, len(own)) for g, own in SIZES.items()}
    dense = costs.total("flops", whole)
    space = channel_space(costs, SIZES, losses, {"flops": 0.7 * dense})
    assert space.dense["flops"] == dense
    for candidate in np.ndindex(3, 2, 3):
        kept = {g: own[i] for (g, own), i in zip(SIZES.items(), candidate, strict=True)}
        for metric in costs.terms:
            assert space.total(metric, candidate) == costs.total(metric, kept)
        assert space.feasible(candidate) == (costs.total("flops", kept) <= 0.7 * dense)
    if space.feasible((0, 0, 0)):
        assert milp(space).error == pytest.approx(brute_force(space)[1])


def test_sizes_are_multiples_and_all() -> None:
    assert multiples(64, 16, 1) == [16, 32, 48, 64]
    assert multiples(10, 4, 4) == [4, 8, 10]
    assert multiples(24, 8, 16) == [16, 24]
    assert multiples(3, 8, 1) == [3]
    assert multiples(4096, 8, 1, 64) == [*range(64, 4097, 64)]
