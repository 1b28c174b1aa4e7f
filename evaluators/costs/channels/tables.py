"""What levels of channel groups cost: products of what is left on two sides of a weight, as tables
over one decision and over pairs of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from apportion.compressors.groups.find import ChannelGroup
from apportion.compressors.layers import LayerSpec
from apportion.compressors.levels import DENSE, Level, Quantization, parse_level
from apportion.db.channels.database import ChannelDatabase, of_layers, stored_name
from apportion.evaluators.costs.channels.counts import channel_costs
from apportion.evaluators.costs.channels.latency import ChannelLatency
from apportion.evaluators.costs.channels.pairs import PairTable, Part

_FLOAT_BITS = 32


METRICS = ("flops", "params", "bits", "bops", "bops-linear")


def channel_tables(
    model: nn.Module, database: ChannelDatabase, latency: ChannelLatency | None = None
) -> dict[str, PairTable]:
    """Costs of all decisions in every metric: flops in multiply-accumulates per sample, params in
    weights that are not zero by a level's pattern, bits in bits, bops in bit operations
    (evaluators/costs/model.py)."""
    tables = {metric: _Table(metric, model, database).made() for metric in METRICS}
    if latency is not None:
        tables["latency"] = _timed(database, latency)
    return tables


def _timed(database: ChannelDatabase, latency: ChannelLatency) -> PairTable:
    """Seconds in floats: levels of layers take what floats take."""
    decisions = list(database.decisions.values())
    numbers = {own.group: i for i, own in enumerate(decisions) if own.group is not None}
    sizes = {own.group: own.kept for own in decisions if own.group is not None}
    table = PairTable.empty([len(own.levels) for own in decisions])
    table.add_seconds(latency, sizes, numbers)
    table.dense = table.total([0] * len(decisions))
    return table


def counts(
    model: nn.Module, database: ChannelDatabase, profile: Mapping[str, Level]
) -> tuple[int, int]:
    """Parameters, zeros too, and multiply-accumulates for a sample, of the smaller model at a
    profile."""
    content, sizes = database.content, database.sizes(profile)
    costs = channel_costs(model, content.found, content.grouped.groups)
    return costs.total("params", sizes), costs.total("flops", sizes)


class _Table:
    def __init__(self, metric: str, model: nn.Module, database: ChannelDatabase) -> None:
        self._metric, self._model, self._database = metric, model, database
        self._layers, self._macs = database.content.layers.values(), database.content.macs
        self._numbers = {name: i for i, name in enumerate(database.decisions)}
        self._groups: dict[str, tuple[int, ChannelGroup, np.ndarray]] = {}
        by_name = {group.name: group for group in database.content.grouped.groups}
        for name, decision in database.decisions.items():
            if decision.group is not None:
                kept = np.array(decision.kept, dtype=np.float64)
                self._groups[decision.group] = (
                    self._numbers[name],
                    by_name[decision.group],
                    kept,
                )

    def made(self) -> PairTable:
        levels = [len(own.levels) for own in self._database.decisions.values()]
        table = PairTable.empty(levels)
        for layer in self._layers:
            table.add(self._rows(layer), self._of_a_row(layer))
        if self._metric in ("params", "bits"):
            self._rest(table)
        else:
            each = {"flops": 1, "bops": _FLOAT_BITS**2, "bops-linear": _FLOAT_BITS}
            found = self._database.content.found
            side = Part(found.base)
            for number, group, kept in self._groups.values():
                own = int(found.activations * group.share)  # goes with each head
                side.fixed -= own * group.size
                side.plus(number, own * kept)
            table.add(side, Part(each[self._metric]))
        table.dense = table.total([0] * len(levels))  # dense comes first
        return table

    def _rows(self, layer: LayerSpec) -> Part:
        side = Part(layer.rows)
        for number, group, kept in self._groups.values():
            if (own := group.makers.get(layer.name)) is not None:
                _count(side, number, own, group.size, kept)
        return side

    def _of_a_row(self, layer: LayerSpec) -> Part:
        """What one row of the layer costs."""
        name, database = layer.name, self._database
        times = self._macs[name] / (layer.rows * layer.columns)
        if name in database.decided:
            decision = database.decisions[database.deciding(name)]
            sizes = decision.kept or [None] * len(decision.levels)
            row = [
                self._weights(times, layer.rows, stored_name(name, kept), of_layers(level))
                for kept, level in zip(sizes, map(parse_level, decision.levels), strict=True)
            ]
            return Part(0.0, {self._numbers[decision.name]: np.array(row)})
        side = Part(layer.columns)
        for number, group, kept in self._groups.values():
            if (read := group.readers.get(name)) is not None:
                _count(side, number, read[0], group.size, kept)
        each = _cost(self._metric, times, 1.0, _FLOAT_BITS, DENSE)
        return side.scaled(each)

    def _weights(self, times: float, rows: int, stored: str, level: Level) -> float:
        """One row of stored weights."""
        if stored not in self._database.database.layers:
            return 0.0  # all of them are gone
        record = self._database.database.layers[stored]
        entry = self._database.database.entry(stored, level)
        count = record.size / rows
        bits = _FLOAT_BITS * count if level.is_dense else entry.bits / rows
        if level.sparsity:
            # Zeros that a quantizer left are no pattern that anything could skip.
            count = entry.nonzeros / rows
        return _cost(self._metric, times, count, bits, level)

    def _rest(self, table: PairTable) -> None:
        """Parameters and buffers that are no layer's weight, such as biases."""
        bits = self._metric == "bits"
        values: dict[str, Tensor] = dict(self._model.named_parameters())
        if bits:
            values |= dict(self._model.named_buffers())
        for name, value in values.items():
            own = [layer for layer in self._layers if name in layer.where.parameters]
            left = value.numel() - sum(layer.rows * layer.columns for layer in own)
            if own:  # what no layer has of it stays as it is
                table.base += left * (8 * value.element_size() if bits else 1)
                continue
            sides = self._sides(name, value)
            times = 8.0 * value.element_size() if bits else 1.0
            table.add(sides[0], sides[1], times)

    def _sides(self, name: str, value: Tensor) -> list[Part]:
        """Two, whose product is how many elements there are."""
        sides, times = [], 1.0
        for dim, size in enumerate(value.shape):
            side = Part(size)
            for number, group, kept in self._groups.values():
                for part in group.slices:
                    if (part.name, part.dim) == (name, dim):
                        _count(side, number, part.channel, group.size, kept)
            if side.each:
                sides.append(side)
            else:
                times *= size
        assert len(sides) <= 2, name
        sides += [Part(1.0)] * (2 - len(sides))
        sides[0] = sides[0].scaled(times)
        return sides


def _count(side: Part, number: int, channel: np.ndarray, size: int, kept: np.ndarray) -> None:
    """Of so many places, those of a group's channels depend on how many stay."""
    count = int((channel >= 0).sum())
    side.fixed -= count
    side.plus(number, kept * (count // size))


def _cost(metric: str, times: float, weights: float, bits: float, level: Level) -> float:
    """Of so many weights, which take so many bits and are multiplied so many times."""
    if metric == "bits":
        return bits
    if metric == "params":
        return weights
    quantization = level.quantization or Quantization(None)
    own = quantization.weight_bits or _FLOAT_BITS, quantization.activation_bits or _FLOAT_BITS
    factor = {"flops": 1, "bops": own[0] * own[1], "bops-linear": max(own)}[metric]
    return times * weights * factor
