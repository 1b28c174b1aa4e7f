"""What channels cost, as a search over the sizes of their groups takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from apportion.evaluators.costs.channels import ChannelCosts, Side
from apportion.search.space.pairwise import PairCosts


def pair_costs(costs: ChannelCosts, metric: str, sizes: Mapping[str, Sequence[int]]) -> PairCosts:
    """Of the channels that groups may keep: `sizes` of each group, in the order of its choices."""
    made = PairCosts(single={g: np.zeros(len(own)) for g, own in sizes.items()})
    table = {g: np.array(own, dtype=np.float64) for g, own in sizes.items()}

    def alone(side: Side, factor: float) -> None:
        for g, each in side.each.items():
            made.single[g] += factor * each * table[g]

    for term in costs.terms[metric]:
        left, right = term.left, term.right
        made.fixed += term.times * left.fixed * right.fixed
        alone(left, term.times * right.fixed)
        alone(right, term.times * left.fixed)
        for g, a in left.each.items():
            for h, b in right.each.items():
                if g == h:
                    made.single[g] += term.times * a * b * table[g] ** 2
                    continue
                first, second = sorted((g, h))
                product = term.times * a * b * np.outer(table[first], table[second])
                pair = made.pair.setdefault((first, second), np.zeros(product.shape))
                pair += product
    return made
