"""The layers of a channel database: which levels groups and layers get, and what a layer is when
some of its channels are gone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from apportion.compressors.groups.find import ChannelGroup, Grouped
from apportion.compressors.groups.ladder import Reader, compensated
from apportion.compressors.groups.moments import Moments
from apportion.compressors.groups.readers import first_of, gone_from
from apportion.compressors.layers import LayerSpec
from apportion.compressors.levels import DENSE, DROP, Level
from apportion.compressors.obs import fits, layer_error
from apportion.db.channels.database import of_layers
from apportion.db.channels.sizes import SizeRules


@dataclass(frozen=True)
class Narrowed:
    """A layer with fewer channels to read: its `layer`, with a narrower shape, the `weight` [rows,
    n] at its best for them, the `hessian` [groups, n, n] of what it reads, and what its outputs
    have `lost` by then, as a share of theirs."""

    layer: LayerSpec
    weight: Tensor
    hessian: Tensor
    lost: float


class Parts:
    """Of the groups in `grouped`.

    Args:
        grouped: the channel groups.
        moments: of what their readers read.
        readers: the layers that read them.
        orders: group -> [channels], which goes first.
        levels: that are wanted.
        rules: how many channels stay.
        vanishing: groups of which all channels can go.
    """

    def __init__(
        self,
        grouped: Grouped,
        moments: Mapping[str, Moments],
        readers: Mapping[str, Reader],
        orders: Mapping[str, np.ndarray],
        levels: Sequence[Level],
        rules: SizeRules,
        vanishing: Collection[str] = (),
    ) -> None:
        self.grouped, self.readers, self.orders = grouped, readers, orders
        self._moments, self._levels, self._rules = moments, levels, rules
        self._vanishing = vanishing
        read = [name for group in grouped.groups for name in group.readers]
        self.shared = {name for name in read if read.count(name) > 1}
        """Layers that read several groups."""

    def own_levels(self, layer: LayerSpec) -> list[Level]:
        """The levels of a layer that reads no group, dense first."""
        if layer.name in self.readers or not layer.is_module_weight:
            return [DENSE]
        wanted = [level for level in self._levels if not level.channels and fits(layer, level)]
        return list(dict.fromkeys([DENSE, *wanted]))

    def choices(self, group: ChannelGroup) -> list[tuple[Level, int]]:
        """A group's levels, dense first, and how many channels stay; one level for each number of
        channels and level of the layers. Where a layer reads other groups too, or is a part of a
        parameter, the layers keep floats and all weights."""
        layers = [self.readers[name].layer for name in group.readers]
        plain = self.shared.isdisjoint(group.readers) and all(
            layer.is_module_weight and layer.groups == 1 for layer in layers
        )
        made: dict[tuple[int, Level], Level] = {}
        for level in [DENSE, *self._levels]:
            if level == DROP and group.name not in self._vanishing:
                continue
            if level.channels and level != DROP and level.unit != group.unit:
                continue
            own, kept = of_layers(level), self._rules.kept(group, level)
            if own.is_dense or (
                plain and all(fits(self._narrow(layer, group, kept), own) for layer in layers)
            ):
                made.setdefault((kept, own), level)
        return [(level, kept) for (kept, _), level in made.items()]

    def narrowed(self, name: str, group: ChannelGroup, kept: int) -> Narrowed:
        """A reader of this group alone."""
        own, moments = self.readers[name], self._moments[name]
        left = torch.from_numpy(self._columns(own.layer, group, kept))
        weight, _ = compensated(own, ~left.numpy())
        split = weight.reshape(len(left), -1, weight.shape[1])
        return Narrowed(
            self._narrow(own.layer, group, kept),
            torch.cat([rows[:, own] for rows, own in zip(split, left, strict=True)]),
            torch.stack([h[own][:, own] for h, own in zip(moments.hessian, left, strict=True)]),
            self._lost(own, weight),
        )

    def lost(self, name: str, group: ChannelGroup, kept: int) -> float:
        """What the outputs of any reader lose, as a share of theirs, when the group has so many
        channels and all others are whole."""
        own = self.readers[name]
        return self._lost(own, compensated(own, ~self._columns(own.layer, group, kept))[0])

    def _lost(self, own: Reader, weight: Tensor) -> float:
        if own.whole <= 0:
            return 0.0
        difference = weight - own.weight.reshape(weight.shape)
        return layer_error(difference, self._moments[own.layer.name].hessian) / own.whole

    def _columns(self, layer: LayerSpec, group: ChannelGroup, kept: int) -> np.ndarray:
        """Which columns of a reader are left, bool [groups, columns]."""
        stays = first_of({group.name: self.orders[group.name]}, {group.name: kept})
        gone = gone_from(replace(self.grouped, groups=(group,)), layer.name, stays)
        return np.ones((layer.groups, layer.columns), bool) if gone is None else ~gone

    def _narrow(self, layer: LayerSpec, group: ChannelGroup, kept: int) -> LayerSpec:
        left = int(self._columns(layer, group, kept)[0].sum())
        kernel = layer.shape[2:]
        shape = (layer.rows, left // int(np.prod(kernel, dtype=int)), *kernel)
        return replace(layer, shape=shape, columns=left)
