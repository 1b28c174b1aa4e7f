"""What levels of channel groups cost: products of what is left on two sides of a weight, as tables
over one decision and over pairs of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from apportion.compressors.groups.find import ChannelGroup
from apportion.compressors.layers import LayerSpec
from apportion.compressors.levels import DENSE, Level, Quantization, parse_level
from apportion.db.channels.database import ChannelDatabase, of_layers, stored_name
from apportion.evaluators.costs.channels.latency import ChannelLatency

_FLOAT_BITS = 32


@dataclass
class PairTable:
    """One metric, of candidates over decisions: base + sum of single[d][a] + sum of pairs[d, e][a,
    b], d < e; float64. `dense`: what the dense model costs."""

    base: float
    single: list[np.ndarray]
    pairs: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    dense: float = 0.0

    def total(self, candidate: Any) -> float:
        return float(
            self.base
            + sum(row[i] for row, i in zip(self.single, candidate, strict=True))
            + sum(own[candidate[d], candidate[e]] for (d, e), own in self.pairs.items())
        )

    def add(self, left: _Side, right: _Side, times: float = 1.0) -> None:
        """times x left x right."""
        self.base += times * left.fixed * right.fixed
        for d, row in left.each.items():
            self.single[d] += times * right.fixed * row
        for e, row in right.each.items():
            self.single[e] += times * left.fixed * row
        for d, a in left.each.items():
            for e, b in right.each.items():
                if d == e:
                    self.single[d] += times * a * b
                    continue
                product = times * np.outer(*((a, b) if d < e else (b, a)))
                key = (min(d, e), max(d, e))
                self.pairs[key] = self.pairs.get(key, 0.0) + product


@dataclass
class _Side:
    """A number that depends on decisions: fixed + sum of each[d][level]."""

    fixed: float
    each: dict[int, np.ndarray] = field(default_factory=dict)

    def scaled(self, factor: float) -> _Side:
        return _Side(self.fixed * factor, {d: row * factor for d, row in self.each.items()})

    def plus(self, decision: int, row: np.ndarray) -> None:
        self.each[decision] = self.each.get(decision, 0.0) + row


_COUNTS = ("elements", "products")
"""Parameters and multiply-accumulates, whatever they are."""
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
    found = latency.tables(sizes)
    table = PairTable(found.fixed, [np.zeros(len(own.levels)) for own in decisions])
    for group, row in found.single.items():
        table.single[numbers[group]] += row
    for (g, h), own in found.pair.items():
        i, j = numbers[g], numbers[h]
        table.pairs[min(i, j), max(i, j)] = own if i < j else own.T
    table.dense = table.total([0] * len(decisions))
    return table


def counts(
    model: nn.Module, database: ChannelDatabase, profile: Mapping[str, Level]
) -> tuple[int, int]:
    """Parameters, zeros too, and multiply-accumulates for a sample, of the smaller model at a
    profile."""
    candidate = [
        decision.levels.index(str(profile[name])) for name, decision in database.decisions.items()
    ]
    both = (_Table(what, model, database).made().total(candidate) for what in _COUNTS)
    elements, products = (round(value) for value in both)
    return elements, products


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
        rows = [np.zeros(len(own.levels)) for own in self._database.decisions.values()]
        table = PairTable(0.0, rows)
        for layer in self._layers:
            table.add(self._rows(layer), self._of_a_row(layer))
        if self._metric in ("params", "bits", "elements"):
            self._rest(table)
        else:
            each = {"flops": 1, "products": 1, "bops": _FLOAT_BITS**2, "bops-linear": _FLOAT_BITS}
            side = _Side(self._database.content.base)
            for name, (number, group, kept) in self._groups.items():
                own = self._database.content.products.get(name, 0.0)
                side.fixed -= own * group.size
                side.plus(number, own * kept)
            table.add(side, _Side(each[self._metric]))
        table.dense = table.total([0] * len(rows))  # dense comes first
        return table

    def _rows(self, layer: LayerSpec) -> _Side:
        side = _Side(layer.rows)
        for number, group, kept in self._groups.values():
            if (own := group.makers.get(layer.name)) is not None:
                _count(side, number, own, group.size, kept)
        return side

    def _of_a_row(self, layer: LayerSpec) -> _Side:
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
            return _Side(0.0, {self._numbers[decision.name]: np.array(row)})
        side = _Side(layer.columns)
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
        if level.sparsity and self._metric not in _COUNTS:
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

    def _sides(self, name: str, value: Tensor) -> list[_Side]:
        """Two, whose product is how many elements there are."""
        sides, times = [], 1.0
        for dim, size in enumerate(value.shape):
            side = _Side(size)
            for number, group, kept in self._groups.values():
                for part in group.slices:
                    if (part.name, part.dim) == (name, dim):
                        _count(side, number, part.channel, group.size, kept)
            if side.each:
                sides.append(side)
            else:
                times *= size
        assert len(sides) <= 2, name
        sides += [_Side(1.0)] * (2 - len(sides))
        sides[0] = sides[0].scaled(times)
        return sides


def _count(side: _Side, number: int, channel: np.ndarray, size: int, kept: np.ndarray) -> None:
    """Of so many places, those of a group's channels depend on how many stay."""
    count = int((channel >= 0).sum())
    side.fixed -= count
    side.plus(number, kept * (count // size))


def _cost(metric: str, times: float, weights: float, bits: float, level: Level) -> float:
    """Of so many weights, which take so many bits and are multiplied so many times."""
    if metric == "bits":
        return bits
    if metric in ("params", "elements"):
        return weights
    quantization = level.quantization or Quantization(None)
    own = quantization.weight_bits or _FLOAT_BITS, quantization.activation_bits or _FLOAT_BITS
    factor = {"flops": 1, "products": 1, "bops": own[0] * own[1], "bops-linear": max(own)}[metric]
    return times * weights * factor
