"""Hessians from the products themselves, where a module's input does not tell what its weight is
multiplied with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apportion.compressors.kinds.naming import Names
from apportion.compressors.kinds.products import Product
from apportion.compressors.kinds.regions import IrregularError, locate
from apportion.compressors.kinds.watch import Watch
from apportion.compressors.layers import LayerSpec
from apportion.compressors.place import Place

CHUNK_VALUES = 1 << 25
"""Values of X that are held at once in double precision."""


class Collector(Watch):
    """Adds X X^T of every product with one of `layers` to its sum, while it happens: a model may
    write over an input later. `sums`: layer -> float64 in its Hessian's shape; moved to the inputs'
    device."""

    def __init__(
        self, model: nn.Module, batch: Any, layers: Sequence[LayerSpec], sums: dict[str, Tensor]
    ) -> None:
        super().__init__(model, batch)
        self._names = Names(model)
        self._layers: Mapping[Place, LayerSpec] = {own.place: own for own in layers if own.place}
        self._sums = sums

    def used(self, product: Product, live: bool) -> None:  # noqa: ARG002
        try:
            matrices = locate(self.origins, product, self._names.cuts)
        except IrregularError:
            return
        for matrix in matrices:
            found = [self._layers.get(part.place) for part in matrix.parts]
            layers = [layer for layer in found if layer is not None]
            if not layers:
                continue
            first, device = layers[0], product.input.device
            added = torch.zeros(first.hessian_shape, dtype=torch.float64, device=device)
            if product.table:
                (rows,) = product.columns(product.input)
                added[:, 0] += rows.bincount(minlength=first.rows)
            else:
                for x in product.pieces(CHUNK_VALUES):
                    for i in matrix.inputs:
                        add_products(added, x[i])
            for layer in layers:
                self._sums[layer.name] = self._sums[layer.name].to(device).add_(added)


def add_products(total: Tensor, x: Tensor) -> None:
    """total [groups, d, d] += X^T X of X [groups, positions, d], some positions at a time."""
    groups, positions, width = x.shape
    step = max(1, CHUNK_VALUES // max(1, groups * width))
    for start in range(0, positions, step):
        piece = x[:, start : start + step].double()
        torch.baddbmm(total, piece.transpose(1, 2), piece, out=total)
