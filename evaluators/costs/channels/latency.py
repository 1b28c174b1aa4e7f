"""What a model's latency is when channels are gone: a table over (inputs kept, outputs kept) for
each layer, and the rest; as costs of pairs of groups, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from apportion.compressors.groups.find import ChannelGroup
from apportion.compressors.kinds.uses import Found
from apportion.evaluators.costs.channels.counts import Side, layer_sides
from apportion.evaluators.costs.channels.grid import ChannelTables, Grid, add_layer


@dataclass(frozen=True)
class Channels:
    """reads, makes: layer -> the channels along the second and the first dimension of its weight.
    values: what all layers put out for a sample."""

    reads: Mapping[str, Side]
    makes: Mapping[str, Side]
    values: Side


def channels_of(found: Found, groups: Sequence[ChannelGroup]) -> Channels:
    """Of a model's layers; tables, whose rows are looked up, take no time of their own."""
    reads, makes, values = {}, {}, Side(0)
    for layer in found.layers:
        if layer.is_table:
            continue
        rows, columns = layer_sides(layer, groups)
        kernel = prod(layer.shape[2:])
        each = {g: number // kernel for g, number in columns.each.items()}
        makes[layer.name], reads[layer.name] = rows, Side(columns.fixed // kernel, each)
        positions = found.macs[layer.name] // (layer.rows * layer.columns)
        values.fixed += positions * rows.fixed
        for g, number in rows.each.items():
            values.each[g] = values.each.get(g, 0) + positions * number
    return Channels(reads, makes, values)


@dataclass(frozen=True)
class ChannelLatency:
    """grids: layer -> its table. channels: what they depend on. base: seconds in no layer; slope:
    for each value that layers put out for a sample. Both may be negative, as layers alone take
    longer than in their model."""

    grids: Mapping[str, Grid]
    channels: Channels
    base: float = 0.0
    slope: float = 0.0

    def seconds(self, kept: Mapping[str, int]) -> float:
        """With so many channels kept of each group."""
        reads, makes = self.channels.reads, self.channels.makes
        layers = sum(
            float(grid.at(np.array(reads[name].count(kept)), np.array(makes[name].count(kept))))
            for name, grid in self.grids.items()
        )
        return self.base + layers + self.slope * self.channels.values.count(kept)

    def tables(self, sizes: Mapping[str, Sequence[int]]) -> ChannelTables:
        """`seconds` of the sizes that groups may have, as costs of pairs: exactly, where a layer
        depends on two groups or fewer. A layer that reads several groups (concatenated) and makes
        others is bounded from above by a sum over its parts, which is exact where its seconds are
        linear in what it reads."""
        own = {g: np.array(of, dtype=np.float64) for g, of in sizes.items()}
        made = ChannelTables(self.base, {g: np.zeros(len(of)) for g, of in own.items()})
        made.fixed += self.slope * self.channels.values.fixed
        for g, each in self.channels.values.each.items():
            made.single[g] += self.slope * each * own[g]
        for name, grid in self.grids.items():
            add_layer(made, grid, self.channels.reads[name], self.channels.makes[name], own)
        return made
