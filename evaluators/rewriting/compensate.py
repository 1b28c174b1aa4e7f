"""Smaller models whose layers make up for the channels that they no longer get."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from apportion.compressors.groups.find import Grouped
from apportion.compressors.groups.ladder import Reader, compensated
from apportion.compressors.layers import from_matrix
from apportion.evaluators.rewriting.narrow import Kept, narrowed


def without(
    model: nn.Module, grouped: Grouped, readers: Mapping[str, Reader], kept: Kept
) -> nn.Module:
    """A copy of `model` without the channels that are not kept, in which the layers that read them
    have the weights, and biases or batch-norm means, that change their outputs least.

    Args:
        model: left as it is.
        grouped: its channel groups.
        readers: the layers that read them, of `model`, by name; {}: nothing is made up for.
        kept: group -> bool [its channels], which stay.
    """
    made = copy.deepcopy(model)
    parameters = dict(made.named_parameters(remove_duplicate=False))
    buffers = dict(made.named_buffers())
    for name, own in readers.items():
        gone = _gone(grouped, name, kept)
        if gone is None:
            continue
        weight, shift = compensated(own, gone)
        own.layer.where.write(made, from_matrix(weight.float(), own.layer))
        bias, mean = parameters.get(f"{name}.bias"), grouped.norms.get(name)
        with torch.no_grad():
            if bias is not None and bias.shape == shift.shape:
                bias.add_(shift.to(bias.dtype))
            elif mean is not None:
                buffers[mean].sub_(shift.to(buffers[mean].dtype))
    return narrowed(made, grouped.groups, kept)


def first_of(orders: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Group -> which channels stay, where so many do, of orders in which they go."""
    made = {}
    for name, order in orders.items():
        stays = np.ones(len(order), bool)
        stays[order[: len(order) - sizes[name]]] = False
        made[name] = stays
    return made


def _gone(grouped: Grouped, layer: str, kept: Kept) -> np.ndarray | None:
    """Columns that the layer no longer reads, bool [groups, columns]; None: it reads all."""
    made: np.ndarray | None = None
    for group in grouped.groups:
        columns = group.readers.get(layer)
        if columns is None or group.name not in kept:
            continue
        own = (columns >= 0) & ~kept[group.name][columns]
        made = own if made is None else made | own
    return made if made is not None and made.any() else None


def readers_of(grouped: Grouped, names: Sequence[str]) -> list[str]:
    """The layers among `names` that read any group's channels."""
    read = {name for group in grouped.groups for name in group.readers}
    return [name for name in names if name in read]
