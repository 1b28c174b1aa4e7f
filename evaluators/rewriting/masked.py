"""Whether channel groups are what they seem: the smaller model gives what the whole one gives when
nobody reads the channels that are gone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apportion.compressors.calibration import Batch, Calibration
from apportion.compressors.groups.find import HEADS, ChannelGroup, Grouped
from apportion.compressors.groups.readers import Kept
from apportion.compressors.groups.rules import output_tensors
from apportion.compressors.layers import LayerSpec, from_matrix, hooked, to_matrix
from apportion.evaluators.rewriting.narrow import narrowed

_TOLERANCE = 1e-3
"""Of the largest output."""
_SHARES = (0.5, 0.25, 0.75)
"""Of each group's channels that stay, one trial after the other."""


def masked(
    model: nn.Module, layers: Sequence[LayerSpec], groups: Sequence[ChannelGroup], kept: Kept
) -> nn.Module:
    """A copy of `model` whose layers have zeros for channels that are not kept."""
    made, by_name = copy.deepcopy(model), {layer.name: layer for layer in layers}
    for group in groups:
        for name, columns in group.readers.items():
            layer = by_name[name]
            weight = to_matrix(layer.where.read(made), layer).clone()
            gone = torch.from_numpy((columns >= 0) & ~kept[group.name][columns])
            weight.unflatten(0, (layer.groups, -1)).masked_fill_(gone[:, None, :], 0)
            layer.where.write(made, from_matrix(weight, layer))
    return made


def working(
    model: nn.Module,
    grouped: Grouped,
    layers: Sequence[LayerSpec],
    calibration: Calibration,
    batch: Batch,
) -> Grouped:
    """The groups without which `model` runs and computes the same: a model's code may name sizes of
    its own. Channels of all groups are taken; where that fails, of those that are no heads and of
    those that are, and then of halves.

    Args:
        model: in eval mode.
        grouped: what `find_groups` found.
        layers: of the model.
        calibration: feeds the batch.
        batch: some samples.

    Returns:
        The groups that work; the others' layers stay, with the reason.
    """
    rng = np.random.default_rng(0)
    kept = dict(grouped.kept)

    def fault(groups: Sequence[ChannelGroup]) -> str:
        for share in _SHARES:
            stays = {}
            for group in groups:
                count = max(1, int(share * group.size))
                stays[group.name] = np.zeros(group.size, bool)
                stays[group.name][rng.permutation(group.size)[:count]] = True
            if reason := _fault(model, groups, stays, layers, calibration, batch):
                return reason
        return ""

    found, failed = _passing(grouped.groups, fault)
    for group, reason in failed:
        kept.update(dict.fromkeys(group.makers, reason))
    return replace(grouped, groups=tuple(found), kept=kept)


def _passing(
    groups: Sequence[ChannelGroup], fault: Callable[[Sequence[ChannelGroup]], str]
) -> tuple[list[ChannelGroup], list[tuple[ChannelGroup, str]]]:
    """Those of the groups with which there is no fault, all together, and the others with their
    faults. Tried by halves, as a try takes passes of the model."""
    failed: list[tuple[ChannelGroup, str]] = []

    def those(some: Sequence[ChannelGroup]) -> list[ChannelGroup]:
        reason = fault(some) if some else ""
        if not reason:
            return list(some)
        if len(some) == 1:
            failed.append((some[0], reason))
            return []
        heads = [group for group in some if group.unit == HEADS]
        if 0 < len(heads) < len(some):  # a model's code names their number, or it does not
            return those([group for group in some if group.unit != HEADS]) + those(heads)
        middle = len(some) // 2
        return those(some[:middle]) + those(some[middle:])

    found = those(groups)
    order = {group.name: i for i, group in enumerate(groups)}
    found.sort(key=lambda group: order[group.name])
    while reason := fault(found) if failed and found else "":  # halves work, and not together
        failed.append((found.pop(), reason))
    return found, failed


def vanishing(
    model: nn.Module,
    grouped: Grouped,
    layers: Sequence[LayerSpec],
    calibration: Calibration,
    batch: Batch,
) -> list[str]:
    """The groups of which all channels can go: the model runs and computes the same without any.
    Arguments as for `working`, whose groups are taken."""

    def fault(groups: Sequence[ChannelGroup]) -> str:
        none = {group.name: np.zeros(group.size, bool) for group in groups}
        return _fault(model, groups, none, layers, calibration, batch)

    return [group.name for group in _passing(grouped.groups, fault)[0]]


def _fault(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    stays: Kept,
    layers: Sequence[LayerSpec],
    calibration: Calibration,
    batch: Batch,
) -> str:
    """Why the model is not what it should be when these channels stay; empty: it is."""
    try:
        small = _Run(narrowed(model, groups, stays), layers, groups)
        got = small.outputs(calibration, batch)
    except Exception as error:  # whatever the model's own code raises at other sizes
        text = (str(error).splitlines() or [""])[0]
        return f"without some the model's code raises {type(error).__name__}: {text}"
    whole = _Run(masked(model, layers, groups, stays), layers, groups)
    expected = whole.outputs(calibration, batch)
    if not expected:
        return "the model's outputs hold no numbers to compare"
    if len(got) != len(expected) or not all(map(_same, got, expected)):
        return "the smaller model computes something else"
    if not all(
        _same(own, _of_rows(whole.seen[name], groups, name, stays))
        for name, own in small.seen.items()
    ):
        return "a layer of the smaller model gives something else"
    return ""


class _Run:
    """One pass of a model. `seen`: what the layers that read the groups gave, where they are plain
    modules; later ones where they are called several times."""

    def __init__(
        self, model: nn.Module, layers: Sequence[LayerSpec], groups: Sequence[ChannelGroup]
    ) -> None:
        read = {name for group in groups for name in group.readers}
        self.seen: dict[str, Tensor] = {}
        self._model = model
        self._names = [
            layer.name for layer in layers if layer.name in read and layer.is_module_weight
        ]

    def outputs(self, calibration: Calibration, batch: Batch) -> list[Tensor]:
        def keep(name: str, _module: nn.Module, _args: Any, out: Any) -> None:
            self.seen[name] = out

        with hooked() as handles, torch.no_grad():
            for name in self._names:
                module = self._model.get_submodule(name)
                handles.append(module.register_forward_hook(partial(keep, name)))
            made = output_tensors(calibration.forward(self._model, batch))
        return [t for t in made if t.is_floating_point()]


def _of_rows(out: Tensor, groups: Sequence[ChannelGroup], layer: str, kept: Kept) -> Tensor:
    """A layer's output without the channels that it no longer makes."""
    makers = [group for group in groups if layer in group.makers]
    if not makers:
        return out
    stays = np.ones(len(makers[0].makers[layer]), bool)
    for group in makers:
        rows = group.makers[layer]
        stays &= (rows < 0) | kept[group.name][rows]
    dim = -1 if out.shape[-1] == len(stays) and out.dim() < 4 else 1
    return out.index_select(dim, torch.from_numpy(stays.nonzero()[0]))


def _same(one: Tensor, other: Tensor) -> bool:
    """Of one shape, finite in the same places, and equal there up to rounding."""
    if one.shape != other.shape:
        return False
    finite = other.isfinite()
    if not bool((one.isfinite() == finite).all()):
        return False
    one, other = one[finite], other[finite]
    if not one.numel():
        return True
    scale = float(other.abs().max())
    return float((one - other).abs().max()) <= _TOLERANCE * scale + 1e-12
