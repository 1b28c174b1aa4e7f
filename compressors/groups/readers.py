"""The layers that read channels, ready for what makes up for those that go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from apportion.compressors.calibration import Calibration
from apportion.compressors.groups.find import Grouped
from apportion.compressors.groups.ladder import Reader, reader
from apportion.compressors.groups.moments import Moments, collect_moments
from apportion.compressors.layers import LayerSpec, to_matrix
from apportion.compressors.progress import Progress, silent
from apportion.compressors.threads import full_precision

Kept = Mapping[str, np.ndarray]
"""Group -> bool [its channels], which stay."""


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
    moments = reader_moments(model, grouped, layers, calibration, progress)
    own = {layer.name: layer for layer in layers}
    return {
        name: reader(own[name], to_matrix(own[name].where.read(model), own[name]), found, damping)
        for name, found in moments.items()
    }


def reader_moments(
    model: nn.Module,
    grouped: Grouped,
    layers: Sequence[LayerSpec],
    calibration: Calibration,
    progress: Progress = silent,
) -> dict[str, Moments]:
    """Of what they read: about the mean where a bias or batch-norm behind them can shift their
    outputs, about zero elsewhere. As `readers_of`."""
    read = {name for group in grouped.groups for name in group.readers}
    own = [layer for layer in layers if layer.name in read]
    with full_precision():
        moments = collect_moments(model, own, calibration, progress)
    shifted = grouped.biases.keys() | grouped.norms.keys()
    return {n: own if n in shifted else own.about_zero() for n, own in moments.items()}


def first_of(orders: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Group -> which channels stay, where so many do, of orders in which they go."""
    made = {}
    for name, order in orders.items():
        stays = np.ones(len(order), bool)
        stays[order[: len(order) - sizes[name]]] = False
        made[name] = stays
    return made


def gone_from(grouped: Grouped, layer: str, kept: Kept) -> np.ndarray | None:
    """Columns that the layer no longer reads, bool [groups, columns]; None: it reads all."""
    made: np.ndarray | None = None
    for group in grouped.groups:
        columns = group.readers.get(layer)
        if columns is None or group.name not in kept:
            continue
        own = (columns >= 0) & ~kept[group.name][columns]
        made = own if made is None else made | own
    return made if made is not None and made.any() else None
