"""How many channels groups keep, as a search space: layers are the groups, levels their sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from apportion.evaluators.costs.channels.counts import ChannelCosts, Side
from apportion.evaluators.costs.channels.latency import ChannelLatency
from apportion.evaluators.costs.channels.pairs import PairTable, Part
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
    numbers, counts = {g: i for i, g in enumerate(sizes)}, [len(own) for own in sizes.values()]

    def part(side: Side) -> Part:
        each = {numbers[g]: n * np.array(sizes[g], dtype=float) for g, n in side.each.items()}
        return Part(side.fixed, each)

    tables = {metric: PairTable.empty(counts) for metric in costs.terms}
    for metric, terms in costs.terms.items():
        for term in terms:
            tables[metric].add(part(term.left), part(term.right), term.times)
    whole = {group: own[-1] for group, own in sizes.items()}
    dense = {metric: float(costs.total(metric, whole)) for metric in tables}
    if latency is not None:
        tables["latency"] = PairTable.empty(counts)
        tables["latency"].add_seconds(latency, sizes, numbers)
        dense["latency"] = latency.seconds(whole)
    return SearchSpace(
        layers=tuple(sizes),
        levels=tuple(tuple(map(str, own)) for own in sizes.values()),
        costs={metric: tuple(own.single) for metric, own in tables.items()},
        base={metric: own.base for metric, own in tables.items()},
        dense=dense,
        budgets=dict(limits),
        errors=tuple(losses[group] for group in sizes),
        pairs={metric: own.pairs for metric, own in tables.items()},
    )


def multiples(size: int, multiple: int, least: int, most: int = 1 << 30) -> Sequence[int]:
    """Sizes that a group of `size` channels may have, the smallest first: multiples, and all; of so
    many at most, by larger steps."""
    step = multiple * max(1, -(-size // (multiple * most)))
    return sorted({*range(max(least, step), size, step), size})
