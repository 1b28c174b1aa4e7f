"""Finds a model's channel groups: channels that must go together, with every layer that makes and
every layer that reads them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from torch import nn

from apportion.compressors.calibration import Batch, Calibration
from apportion.compressors.groups.flow import Flow
from apportion.compressors.kinds.watch import unfused
from apportion.compressors.layers import LayerSpec

CHANNELS, HEADS = "channels", "heads"


@dataclass(frozen=True)
class Slice:
    """Channels along dimension `dim` of a parameter or buffer: channel [its size], -1 where there
    is none of the group."""

    name: str
    dim: int
    channel: np.ndarray


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are made and read by the same layers, so that any number of them may go.

    name: of the first layer that makes them.
    size: how many there are.
    makers: layer -> [its rows], which channel each row makes, -1: none.
    readers: layer -> [groups, its columns], which channel each column reads, -1: none; without
        depthwise convolutions, whose channels go as they come.
    slices: where they lie in parameters and buffers.
    unit: "channels", or "heads" of an attention: then one of the group's channels is a head (with
        grouped queries: a key/value head and all query heads that share it), of several rows of
        each maker and columns of each reader.
    share: of the multiply-accumulates of activations with each other, what goes with each head.
    """

    name: str
    size: int
    makers: Mapping[str, np.ndarray]
    readers: Mapping[str, np.ndarray]
    slices: tuple[Slice, ...]
    unit: str = CHANNELS
    share: Fraction = Fraction(0)


@dataclass(frozen=True)
class Grouped:
    """groups: those whose channels may go; kept: layer -> why the channels that it makes stay;
    norms: layer -> running mean of the batch-norm that takes what it puts out; biases: layer -> the
    bias that is added to that."""

    groups: tuple[ChannelGroup, ...]
    kept: Mapping[str, str]
    norms: Mapping[str, str]
    biases: Mapping[str, str]


def find_groups(
    model: nn.Module, layers: Sequence[LayerSpec], calibration: Calibration, batch: Batch
) -> Grouped:
    """The channel groups of `model` (eval mode), from one traced pass.

    Args:
        model: left as it is.
        layers: its layers, as `find_layers` gives them.
        calibration: feeds the batch.
        batch: one sample or two, on the model's device.

    Returns:
        Groups in the order in which their first layers are used, and what stays.
    """
    with unfused(model), torch.no_grad(), Flow(model, batch) as flow:
        outputs = calibration.forward(model, batch)
    flow.leave(outputs)
    return _Sorting(flow, layers).sorted()


_Role = tuple[str, str, int]
"""What a layer or parameter is to a channel, its name, and in how many places."""


class _Sorting:
    """From numbers to groups."""

    def __init__(self, flow: Flow, layers: Sequence[LayerSpec]) -> None:
        self._flow = flow
        found = flow.book.classes()
        self._classes, self._locked, self._heads = found.of, found.locked, found.heads
        self._layers = {layer.where: layer for layer in layers}
        self._slices = self._found_slices()

    def sorted(self) -> Grouped:
        made: dict[str, np.ndarray] = {}
        read: dict[str, np.ndarray] = {}
        kept: dict[str, str] = {}
        for use in self._flow.uses:
            layer = self._layers.get(use.place)
            rows, columns = self._of(use.rows.numpy()), self._of(use.columns.numpy())
            if layer is None or layer.name in made:
                if layer is None:
                    for each in np.unique(np.concatenate([rows.ravel(), columns.ravel()])):
                        self._locked.setdefault(int(each), "a weight that is no layer")
                continue
            made[layer.name] = rows.reshape(-1)
            if layer.groups == 1 or layer.shape[1] > 1:  # a depthwise one makes what it reads
                read[layer.name] = columns
        touched: defaultdict[int, list[_Role]] = defaultdict(list)
        for role, table in (("makes", made), ("reads", read)):
            for name, own in table.items():
                for each, count in zip(*np.unique(own[own > 0], return_counts=True), strict=True):
                    touched[int(each)].append((role, name, int(count)))
        for name, _, own in self._slices:
            for each, count in zip(*np.unique(own[own > 0], return_counts=True), strict=True):
                touched[int(each)].append(("lies in", name, int(count)))
        for name, rows in made.items():
            reason = next((self._locked[c] for c in rows.tolist() if c in self._locked), None)
            if reason is not None:
                kept[name] = reason
        alike: defaultdict[tuple[bool, tuple[_Role, ...]], list[int]] = defaultdict(list)
        for each, roles in touched.items():
            kinds = {role for role, _, _ in roles}
            if each not in self._locked and {"makes", "reads"} <= kinds:
                alike[each in self._heads, tuple(sorted(roles))].append(each)
        order = {name: i for i, name in enumerate(made)}
        groups = [self._group(sorted(each), made, read) for each in alike.values()]
        groups.sort(key=lambda group: (order[group.name], next(iter(group.readers))))
        norms, biases = (
            {self._layers[place].name: name for place, name in own.items() if place in self._layers}
            for own in (self._flow.norms, self._flow.biases)
        )
        return Grouped(tuple(self._named(groups)), kept, norms, biases)

    def _of(self, numbers: np.ndarray) -> np.ndarray:
        """Classes, 0 for none."""
        return np.where(numbers > 0, self._classes[numbers], 0)

    def _found_slices(self) -> list[tuple[str, int, np.ndarray]]:
        slices = [(cut.name, cut.dim, self._of(cut.channels.numpy())) for cut in self._flow.cuts]
        for name, numbers in self._flow.elementwise().items():
            own = self._of(numbers.numpy())
            single = {int(each) for each in np.unique(own)}
            for dim in range(own.ndim):
                across = np.moveaxis(own, dim, 0).reshape(own.shape[dim], -1)
                if (across == across[:, :1]).all():
                    slices.append((name, dim, across[:, 0]))
                    single -= set(np.unique(across).tolist())
            for each in single:  # met somewhere, but no slice of the parameter
                self._locked.setdefault(each, f"{name} has no dimension for them")
        return slices

    def _group(
        self, classes: Sequence[int], made: Mapping[str, np.ndarray], read: Mapping[str, np.ndarray]
    ) -> ChannelGroup:
        channel = np.full(len(self._classes) + 1, -1)
        channel[list(classes)] = np.arange(len(classes))
        channel[0] = -1

        def within(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            own = {name: channel[classes] for name, classes in table.items()}
            return {name: found for name, found in own.items() if (found >= 0).any()}

        makers = within(made)
        slices = {(n, d): channel[own] for n, d, own in self._slices}
        parts = tuple(Slice(n, d, own) for (n, d), own in slices.items() if (own >= 0).any())
        unit = HEADS if classes[0] in self._heads else CHANNELS
        macs = min(self._heads.get(each, 0) for each in classes)
        share = Fraction(macs, max(1, self._flow.activations))
        name = next(iter(makers))
        return ChannelGroup(name, len(classes), makers, within(read), parts, unit, share)

    def _named(self, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
        """With a number behind names that several have."""
        seen: dict[str, int] = {}
        named = []
        for group in groups:
            seen[group.name] = seen.get(group.name, 0) + 1
            count = seen[group.name]
            name = group.name if count == 1 else f"{group.name}#{count}"
            named.append(replace(group, name=name))
        return named
