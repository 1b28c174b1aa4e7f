"""What a model costs when channels are gone: multiply-accumulates and parameters are products of
what is kept on two sides, so that they couple groups in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from apportion.compressors.groups.find import ChannelGroup
from apportion.compressors.kinds.uses import Found
from apportion.compressors.layers import LayerSpec


@dataclass
class Side:
    """A number of rows, columns or elements: `fixed`, and so many for each channel that a group
    keeps."""

    fixed: int
    each: dict[str, int] = field(default_factory=dict)

    def count(self, kept: Mapping[str, int]) -> int:
        return self.fixed + sum(each * kept[name] for name, each in self.each.items())


@dataclass(frozen=True)
class Term:
    """times x left x right."""

    times: int
    left: Side
    right: Side

    def cost(self, kept: Mapping[str, int]) -> int:
        return self.times * self.left.count(kept) * self.right.count(kept)


@dataclass(frozen=True)
class ChannelCosts:
    """Metric -> terms, whose sum is what the model costs."""

    terms: Mapping[str, tuple[Term, ...]]

    def total(self, metric: str, kept: Mapping[str, int]) -> int:
        """With so many channels kept of each group: exactly what `narrowed` gives."""
        return sum(term.cost(kept) for term in self.terms[metric])


def channel_costs(model: nn.Module, found: Found, groups: Sequence[ChannelGroup]) -> ChannelCosts:
    """`flops` (multiply-accumulates for a sample) and `params`."""
    return ChannelCosts(
        {"flops": tuple(_products(found, groups)), "params": tuple(_sizes(model, groups))}
    )


def _products(found: Found, groups: Sequence[ChannelGroup]) -> list[Term]:
    heads = {group.name: int(found.activations * group.share) for group in groups}
    rest = found.base - sum(heads[group.name] * group.size for group in groups)
    terms = [Term(rest, Side(1), Side(1))]
    terms += [Term(macs, Side(0, {name: 1}), Side(1)) for name, macs in heads.items() if macs]
    for layer in found.layers:
        rows, columns = layer_sides(layer, groups)
        times, rest = divmod(found.macs[layer.name], layer.rows * layer.columns)
        assert not rest, layer.name
        terms.append(Term(times, rows, columns))
    return terms


def layer_sides(layer: LayerSpec, groups: Sequence[ChannelGroup]) -> tuple[Side, Side]:
    """Rows and columns of the layer's matrix that are left."""
    rows, columns = Side(layer.rows), Side(layer.columns)
    for group in groups:
        if (own := group.makers.get(layer.name)) is not None:
            _add(rows, group, own)
        if (read := group.readers.get(layer.name)) is not None:
            _add(columns, group, read[0])
    return rows, columns


def _sizes(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[Term]:
    terms = []
    for name, value in model.named_parameters():
        sides: list[Side] = []
        for dim, size in enumerate(value.shape):
            side = Side(size)
            for group in groups:
                for own in group.slices:
                    if (own.name, own.dim) == (name, dim):
                        _add(side, group, own.channel)
            sides.append(side)
        cut = [side for side in sides if side.each]
        times = int(np.prod([side.fixed for side in sides if not side.each], dtype=np.int64))
        cut += [Side(1)] * (2 - len(cut))
        assert len(cut) == 2, name
        terms.append(Term(times, *cut))
    return terms


def _add(side: Side, group: ChannelGroup, channels: np.ndarray) -> None:
    count = int((channels >= 0).sum())
    side.fixed -= count
    side.each[group.name] = side.each.get(group.name, 0) + count // group.size
