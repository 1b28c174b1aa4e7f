"""Second moments of what layers read, about the mean: a channel that is constant costs nothing, as
the next bias can stand for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from apportion.compressors.calibration import Calibration
from apportion.compressors.hessian import collect_hessians
from apportion.compressors.kinds.collect import CHUNK_VALUES
from apportion.compressors.kinds.products import Product
from apportion.compressors.kinds.regions import IrregularError, locate
from apportion.compressors.kinds.watch import Watch, unfused
from apportion.compressors.layers import LayerSpec
from apportion.compressors.progress import Progress, silent


@dataclass(frozen=True)
class Moments:
    """hessian [groups, d, d]: 2 / N sum of (x - mean)(x - mean)^T over all positions of N samples;
    mean [groups, d]; share: 2 / N x positions. float64."""

    hessian: Tensor
    mean: Tensor
    share: float = 0.0

    def about_zero(self) -> Moments:
        """For layers whose outputs nothing can shift."""
        whole = self.hessian + self.share * self.mean[:, :, None] * self.mean[:, None, :]
        return Moments(whole, torch.zeros_like(self.mean))


def collect_moments(
    model: nn.Module,
    layers: Sequence[LayerSpec],
    calibration: Calibration,
    progress: Progress = silent,
) -> dict[str, Moments]:
    """Of the inputs of `layers`, which are no tables, by name; `model` runs as it is. Raises
    LayerError."""
    about_zero = collect_hessians(model, layers, calibration, progress)
    sums = {layer.name: torch.zeros(layer.groups, layer.columns).double() for layer in layers}
    positions = dict.fromkeys(sums, 0)
    with unfused(model):
        samples = calibration.run(
            model, lambda batch: _Sums(model, batch, layers, sums, positions), progress, "means"
        )
    made = {}
    for name, total in sums.items():
        mean = total / max(1, positions[name])
        share = 2.0 * positions[name] / max(1, samples)
        hessian = about_zero[name].cpu() - share * mean[:, :, None] * mean[:, None, :]
        made[name] = Moments(hessian, mean, share)
    return made


class _Sums(Watch):
    """Adds every input of `layers` to its sum."""

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        layers: Sequence[LayerSpec],
        sums: dict[str, Tensor],
        positions: dict[str, int],
    ) -> None:
        super().__init__(model, batch)
        self._layers = {layer.where: layer for layer in layers}
        self._sums, self._positions = sums, positions

    def used(self, product: Product, live: bool) -> None:  # noqa: ARG002
        try:
            matrices = locate(self.origins, product, lambda _: ())
        except IrregularError:
            return
        for matrix in matrices:
            for part in matrix.parts:
                layer = self._layers.get(part.place)
                if layer is None:
                    continue
                for x in product.pieces(CHUNK_VALUES):
                    for i in matrix.inputs:
                        self._sums[layer.name] += x[i].double().sum(1).cpu()
                        self._positions[layer.name] += x[i].shape[1]
