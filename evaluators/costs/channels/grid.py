"""Seconds of a layer over (inputs kept, outputs kept), and sums of such tables as costs of pairs of
channel groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from apportion.evaluators.costs.channels.counts import Side

Sizes = Mapping[str, np.ndarray]
"""Group -> the channels that it may keep."""


@dataclass(frozen=True)
class Grid:
    """seconds [len(inputs), len(outputs)] of a layer whose weight has so many channels along its
    second and first dimension, both ascending; bilinear between, beyond them the nearest value.
    Lower is faster."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    seconds: np.ndarray

    @property
    def turned(self) -> Grid:
        """Inputs and outputs, exchanged."""
        return Grid(self.outputs, self.inputs, self.seconds.T)

    def at(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Seconds [inputs' shape] at pairs of numbers of channels."""
        low, high, along = _cell(self.inputs, inputs)
        left, right, across = _cell(self.outputs, outputs)
        first = self.seconds[low, left] * (1 - across) + self.seconds[low, right] * across
        second = self.seconds[high, left] * (1 - across) + self.seconds[high, right] * across
        made: np.ndarray = first * (1 - along) + second * along
        return made


def _cell(points: Sequence[int], at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The points on both sides of each value, and how far it is from the first to the second."""
    own = np.asarray(points, dtype=np.float64)
    at = np.clip(at, own[0], own[-1])
    high = np.clip(np.searchsorted(own, at), min(1, len(own) - 1), len(own) - 1)
    low = np.maximum(high - 1, 0)
    width = np.where(high > low, own[high] - own[low], 1.0)
    return low, high, (at - own[low]) / width


@dataclass
class ChannelTables:
    """fixed + sum of single[g][a] + sum of pair[g, h][a, b] seconds, for sizes a of g and b of h,
    by their numbers; g < h; float64."""

    fixed: float = 0.0
    single: dict[str, np.ndarray] = field(default_factory=dict)
    pair: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def total(self, chosen: Mapping[str, int]) -> float:
        """Of these sizes, by their numbers."""
        return float(
            self.fixed
            + sum(own[chosen[g]] for g, own in self.single.items())
            + sum(own[chosen[g], chosen[h]] for (g, h), own in self.pair.items())
        )


def add_layer(made: ChannelTables, grid: Grid, reads: Side, makes: Side, own: Sizes) -> None:
    """Add a layer's seconds: exactly where it depends on two groups or fewer. One that reads
    several groups (concatenated) and makes others is bounded from above by a sum over its parts,
    which is exact where its seconds are linear in what it reads."""
    groups = sorted({*reads.each, *makes.each})
    if len(groups) <= 2:
        mesh = dict(zip(groups, np.meshgrid(*(own[g] for g in groups), indexing="ij"), strict=True))
        _put(made, groups, grid.at(*(_counts(side, mesh) for side in (reads, makes))))
    elif len(makes.each) <= 1:
        _bound(made, grid, reads, makes, own)
    elif len(reads.each) <= 1:
        _bound(made, grid.turned, makes, reads, own)
    else:  # from the end of both sides, by the least slope of each
        (in_least, in_most), (out_least, out_most) = _range(reads, own), _range(makes, own)
        outputs = np.array([*grid.outputs, out_least, out_most])
        inner = _slope(grid, in_least, in_most, outputs).min()
        outer = _slope(grid.turned, out_least, out_most, np.array([in_most]))[0]
        made.fixed += float(grid.at(np.array(in_most), np.array(out_most)))
        for side, slope in ((reads, inner), (makes, outer)):
            for g, each in side.each.items():
                made.single[g] -= slope * each * (own[g].max() - own[g])


def _bound(made: ChannelTables, grid: Grid, reads: Side, makes: Side, own: Sizes) -> None:
    """T(in, out) <= T(all, out) - slope(out) x (all - in), of one group or none that is made."""
    least, most = _range(reads, own)
    inner = sorted(makes.each)
    outputs = np.atleast_1d(_counts(makes, own)).astype(np.float64)
    slope = _slope(grid, least, most, outputs)
    ends = grid.at(np.full(len(outputs), most), outputs)
    _put(made, inner, ends if inner else ends[0])
    for g, each in reads.each.items():
        lost = each * (own[g].max() - own[g])
        if inner in ([], [g]):
            _put(made, [g], -lost * slope)
        else:
            _put(made, [g, inner[0]], -np.outer(lost, slope))


def _slope(grid: Grid, least: float, most: float, outputs: np.ndarray) -> np.ndarray:
    """Of the steepest line through the seconds at `most` inputs that lies nowhere below the
    table, [outputs]."""
    ends = grid.at(np.full(len(outputs), most), outputs)
    chords = [
        (ends - grid.at(np.full(len(outputs), x), outputs)) / (most - x)
        for x in {least, *(float(x) for x in grid.inputs)}
        if least <= x < most
    ]
    made: np.ndarray = np.min(chords, axis=0) if chords else np.zeros(len(outputs))
    return made


def _range(side: Side, own: Sizes) -> tuple[float, float]:
    """The fewest and the most channels."""
    both = [_counts(side, {g: getattr(own[g], end)() for g in side.each}) for end in ("min", "max")]
    return float(both[0]), float(both[1])


def _counts(side: Side, own: Mapping[str, np.ndarray]) -> np.ndarray:
    """The channels of a side, for so many of each group."""
    made: np.ndarray = np.asarray(side.fixed + sum(each * own[g] for g, each in side.each.items()))
    return made


def _put(made: ChannelTables, groups: Sequence[str], table: np.ndarray) -> None:
    """Add a table over the sizes of two groups, of one, or of none."""
    if not groups:
        made.fixed += float(table)
    elif len(groups) == 1:
        made.single[groups[0]] += table
    else:
        first, second = sorted(groups)
        table = table if first == groups[0] else table.T
        pair = made.pair.setdefault((first, second), np.zeros(table.shape))
        pair += table
