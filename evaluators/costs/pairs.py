"""Costs of choices that couple in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from apportion.evaluators.costs.channels import ChannelCosts, Side


@dataclass
class PairCosts:
    """One metric: fixed + sum of single[g][a] + sum of pair[g, h][a, b], for sizes a of g and b of
    h, by their numbers; float64."""

    fixed: float = 0.0
    single: dict[str, np.ndarray] = field(default_factory=dict)
    pair: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def total(self, chosen: Mapping[str, int]) -> float:
        return float(
            self.fixed
            + sum(own[chosen[g]] for g, own in self.single.items())
            + sum(own[chosen[g], chosen[h]] for (g, h), own in self.pair.items())
        )


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
