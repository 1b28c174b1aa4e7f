"""Smaller models whose layers make up for the channels that they no longer get."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from apportion.compressors.calibration import Calibration
from apportion.compressors.groups.find import Grouped
from apportion.compressors.groups.ladder import Reader, compensated, reader
from apportion.compressors.groups.moments import collect_moments
from apportion.compressors.layers import LayerSpec, from_matrix, to_matrix
from apportion.compressors.progress import Progress, silent
from apportion.compressors.threads import full_precision
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
        bias, mean = parameters.get(grouped.biases.get(name, "")), grouped.norms.get(name)
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


def readers_of(
    model: nn.Module,
    grouped: Grouped,
    layers: Sequence[LayerSpec],
    calibration: Calibration,
    damping: float,
    progress: Progress = silent,
) -> dict[str, Reader]:
    """The layers that read any group's channels, by name.

    Args:
        model: runs as it is.
        grouped: its channel groups.
        layers: its layers.
        calibration: the data.
        damping: share of the mean of a Hessian's diagonal that is added to it.
        progress: told of passes.

    Raises:
        LayerError: inputs are not finite.
    """
    read = {name for group in grouped.groups for name in group.readers}
    own = [layer for layer in layers if layer.name in read]
    with full_precision():
        moments = collect_moments(model, own, calibration, progress)
    made = {}
    for layer in own:
        found = moments[layer.name]
        if not {layer.name} & (grouped.biases.keys() | grouped.norms.keys()):
            found = found.about_zero()
        weight = to_matrix(layer.where.read(model), layer)
        made[layer.name] = reader(layer, weight, found, damping)
    return made
