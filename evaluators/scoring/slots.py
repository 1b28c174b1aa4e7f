"""Where a layer's weights go in a model that is scored."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apportion.compressors.activations import InputGrid, quantize_input
from apportion.db.layers.format import LayerRecord


class Slot:
    """The place of one layer in `model`. A module's whole weight is exchanged for another tensor,
    which costs nothing; a part of a parameter is written to. Raises ModelError for a model that
    lacks the layer."""

    def __init__(self, model: nn.Module, layer: LayerRecord) -> None:
        self.name = layer.name
        self._model, self._where, self._whole = model, layer.where, layer.place is None
        self._where.read(model)  # it must be there
        self.parameters = [model.get_parameter(name) for name in self._where.parameters]
        modules = dict(model.named_modules(remove_duplicate=False))
        names = (layer.name, *layer.aliases)
        self._modules = [modules[name] for name in names if name in modules]

    def put(self, weight: Tensor, activation: InputGrid | None) -> None:
        """Give the layer this weight, in its shape, and its inputs this grid (None: none)."""
        if self._whole:
            for parameter in self.parameters:
                parameter.data = weight
        else:
            with torch.no_grad():
                self._where.write(self._model, weight)
        for module in self._modules:
            quantize_input(module, activation)
