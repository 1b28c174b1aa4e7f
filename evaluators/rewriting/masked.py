"""Whether channel groups are what they seem: the smaller model gives what the whole one gives when
nobody reads the channels that are gone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from apportion.compressors.calibration import Batch, Calibration
from apportion.compressors.groups.find import ChannelGroup, Grouped
from apportion.compressors.layers import LayerSpec, from_matrix, to_matrix
from apportion.evaluators.rewriting.narrow import Kept, narrowed

_TOLERANCE = 1e-3
"""Of the largest output."""


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
    its own. Half of each group's channels are taken, of all groups, and of halves of them where
    that fails.

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

    def run(made: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            outputs = tree_leaves(calibration.forward(made, batch))
        return [t for t in outputs if isinstance(t, Tensor) and t.is_floating_point()]

    def fault(groups: Sequence[ChannelGroup]) -> str:
        stays = {}
        for group in groups:
            stays[group.name] = np.ones(group.size, bool)
            stays[group.name][rng.permutation(group.size)[: group.size // 2]] = False
        try:
            got = run(narrowed(model, groups, stays))
        except Exception as error:  # whatever the model's own code raises at other sizes
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        expected = run(masked(model, layers, groups, stays))
        for one, other in zip(got, expected, strict=True):
            scale = float(other.abs().max())
            if one.shape != other.shape or float((one - other).abs().max()) > _TOLERANCE * scale:
                return "the smaller model computes something else"
        return ""

    def those(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
        reason = fault(groups) if groups else ""
        if not reason:
            return list(groups)
        if len(groups) == 1:
            kept.update(dict.fromkeys(groups[0].makers, reason))
            return []
        middle = len(groups) // 2
        return those(groups[:middle]) + those(groups[middle:])

    found = those(grouped.groups)
    while reason := fault(found) if found else "":  # each half works, and not both together
        kept.update(dict.fromkeys(found.pop().makers, reason))
    return replace(grouped, groups=tuple(found), kept=kept)
