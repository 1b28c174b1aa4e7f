"""Costs that couple decisions in pairs: products of what each of them leaves on two sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from apportion.evaluators.costs.channels.latency import ChannelLatency


@dataclass
class Part:
    """A number that depends on decisions: fixed + sum of each[d][level]."""

    fixed: float
    each: dict[int, np.ndarray] = field(default_factory=dict)

    def plus(self, decision: int, row: np.ndarray) -> None:
        self.each[decision] = self.each.get(decision, 0.0) + row

    def scaled(self, factor: float) -> Part:
        return Part(self.fixed * factor, {d: row * factor for d, row in self.each.items()})


@dataclass
class PairTable:
    """One metric, of candidates over decisions: base + sum of single[d][a] + sum of pairs[d, e][a,
    b], d < e; float64. `dense`: what the dense model costs."""

    base: float
    single: list[np.ndarray]
    pairs: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    dense: float = 0.0

    @classmethod
    def empty(cls, counts: Sequence[int]) -> PairTable:
        """Nothing yet, over decisions with so many levels."""
        return cls(0.0, [np.zeros(count) for count in counts])

    def total(self, candidate: Sequence[int]) -> float:
        return float(
            self.base
            + sum(row[i] for row, i in zip(self.single, candidate, strict=True))
            + sum(own[candidate[d], candidate[e]] for (d, e), own in self.pairs.items())
        )

    def add(self, left: Part, right: Part, times: float = 1.0) -> None:
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

    def add_seconds(
        self,
        latency: ChannelLatency,
        sizes: Mapping[str, Sequence[int]],
        numbers: Mapping[str, int],
    ) -> None:
        """Of groups, which keep so many channels at each level of the decisions `numbers`."""
        found = latency.tables(sizes)
        self.base += found.fixed
        for group, row in found.single.items():
            self.single[numbers[group]] += row
        for (g, h), own in found.pair.items():
            i, j = numbers[g], numbers[h]
            self.pairs[min(i, j), max(i, j)] = own if i < j else own.T
