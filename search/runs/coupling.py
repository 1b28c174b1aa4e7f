"""How many channels groups keep, as a search space: layers are the groups, levels their sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from apportion.evaluators.costs.channels.counts import ChannelCosts, Side
from apportion.evaluators.costs.channels.latency import ChannelLatency
from apportion.search.space.space import SearchSpace


def channel_space(
    costs: ChannelCosts,
    sizes: Mapping[str, Sequence[int]],
    losses: Mapping[str, np.ndarray],
    limits: Mapping[str, float],
    latency: ChannelLatency | None = None,
) -> SearchSpace:
    """The sizes of groups, in the order of `sizes`, as levels.

    Args:
        costs: of the model.
        sizes: group -> channels that it may keep; the last of them is all.
        losses: group -> additive error of each of its sizes; lower is better.
        limits: metric -> upper bound, in the metric's own unit.
        latency: of the model's layers at numbers of channels.

    Returns:
        The space, with every metric of `costs`, and `latency` in seconds where it is given.

    Raises:
        SpaceError: they do not fit together.
    """
    tables = {metric: _Table.of(costs, metric, sizes) for metric in costs.terms}
    whole = {group: own[-1] for group, own in sizes.items()}
    dense = {metric: float(costs.total(metric, whole)) for metric in tables}
    if latency is not None:
        tables["latency"] = _Table.timed(latency, sizes)
        dense["latency"] = latency.seconds(whole)
    return SearchSpace(
        layers=tuple(sizes),
        levels=tuple(tuple(map(str, own)) for own in sizes.values()),
        costs={metric: tuple(own.single.values()) for metric, own in tables.items()},
        base={metric: own.fixed for metric, own in tables.items()},
        dense=dense,
        budgets=dict(limits),
        errors=tuple(losses[group] for group in sizes),
        pairs={metric: own.pair for metric, own in tables.items()},
    )


@dataclass
class _Table:
    """One metric: fixed + sum of single[g][a] + sum of pair[g, h][a, b], for the sizes a of group g
    and b of group h; pairs by the groups' numbers."""

    single: dict[str, np.ndarray]
    fixed: float = 0.0
    pair: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, costs: ChannelCosts, metric: str, sizes: Mapping[str, Sequence[int]]) -> _Table:
        made = cls({g: np.zeros(len(own)) for g, own in sizes.items()})
        table = {g: np.array(own, dtype=np.float64) for g, own in sizes.items()}
        number = {g: i for i, g in enumerate(sizes)}

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
                    first, second = sorted((g, h), key=number.__getitem__)
                    product = term.times * a * b * np.outer(table[first], table[second])
                    edge = number[first], number[second]
                    made.pair[edge] = made.pair.get(edge, 0.0) + product
        return made

    @classmethod
    def timed(cls, latency: ChannelLatency, sizes: Mapping[str, Sequence[int]]) -> _Table:
        made = latency.tables(sizes)
        number = {g: i for i, g in enumerate(sizes)}
        pair: dict[tuple[int, int], np.ndarray] = {}
        for (g, h), own in made.pair.items():
            i, j = number[g], number[h]
            pair[min(i, j), max(i, j)] = own if i < j else own.T
        return cls({g: made.single[g] for g in sizes}, made.fixed, pair)


def multiples(size: int, multiple: int, least: int, most: int = 1 << 30) -> Sequence[int]:
    """Sizes that a group of `size` channels may have, the smallest first: multiples, and all; of so
    many at most, by larger steps."""
    step = multiple * max(1, -(-size // (multiple * most)))
    return sorted({*range(max(least, step), size, step), size})
