"""Layers that runtimes fuse: those of one module that read the same tensor (queries, keys and
values; gate and up), so that one product with one format takes the place of theirs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from apportion.compressors.calibration import Calibration
from apportion.compressors.kinds.feeding import first_tensor
from apportion.compressors.layers import hooked
from apportion.db.layers.format import LayerRecord


def partners(
    model: nn.Module, layers: Iterable[LayerRecord], calibration: Calibration
) -> list[list[str]]:
    """Sets of two or more linear layers, as one pass over as much data as it takes to see each of
    them shows them; and the parts of one matrix. In the order of `layers`."""
    linear = [layer for layer in layers if layer.kind == "linear"]
    keys: dict[str, Any] = {}
    whole = {}
    for layer in linear:
        if layer.place is None:
            whole[layer.name] = model.get_submodule(layer.name)
        elif model.get_parameter(layer.place.parameters[0]).dim() == 2:
            keys[layer.name] = layer.place.parameters[0]
    for batch in calibration.batches():
        seen: list[_Reading] = []
        with hooked() as handles, torch.no_grad():
            for name, module in whole.items():
                hook = partial(_note, seen, name)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            calibration.forward(model, batch)
        for reading in seen:  # the first of a layer that reads several
            known = next((keys[name] for name in reading.names if name in keys), reading)
            for name in reading.names:
                keys.setdefault(name, known)
        if whole.keys() <= keys.keys():
            break
    sets: dict[Any, list[str]] = {}
    for layer in linear:
        if layer.name in keys:
            sets.setdefault(keys[layer.name], []).append(layer.name)
    return [names for names in sets.values() if len(names) > 1]


class _Reading:
    """A tensor that layers (`names`) of one parent read; it does not keep it alive, and its memory
    may be another's later."""

    def __init__(self, parent: str, tensor: Tensor) -> None:
        self.names: list[str] = []
        self._parent, self._tensor, self._version = parent, weakref.ref(tensor), tensor._version

    def is_of(self, parent: str, tensor: Tensor) -> bool:
        same = self._tensor() is tensor and tensor._version == self._version
        return same and parent == self._parent


def _note(seen: list[_Reading], name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
    tensor, parent = first_tensor(args, kwargs), name.rpartition(".")[0]
    found = next((one for one in reversed(seen) if one.is_of(parent, tensor)), None)
    if found is None:
        found = _Reading(parent, tensor)
        seen.append(found)
    found.names.append(name)
