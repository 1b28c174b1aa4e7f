"""The layers of a model that can be compressed, and the matrix that each of their weights is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apportion.compressors.calibration import call
from apportion.compressors.errors import ModelError

_KINDS: dict[type[nn.Module], str] = {nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Linear: "linear"}


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One compressible module. As a matrix its weight has `rows` rows of `columns` weights, ordered
    kernel position x input channel (channel last), so that blocks and N:M patterns run along input
    channels. The rows of group g (of `groups`, in equal shares) multiply the inputs of that group.
    `aliases` are other modules with the very same weight tensor."""

    name: str
    kind: str
    shape: tuple[int, ...]
    groups: int
    rows: int
    columns: int
    aliases: tuple[str, ...] = ()


def find_layers(model: nn.Module) -> list[LayerSpec]:
    """All Conv1d, Conv2d and Linear modules in the order of `named_modules()`; tied weights once,
    under the first name. Raises ModelError when there are none."""
    found: dict[int, LayerSpec] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        kind = next((kind for base, kind in _KINDS.items() if isinstance(module, base)), None)
        if kind is None:
            continue
        weight = module.weight
        if not isinstance(weight, Tensor):
            continue
        known = found.get(id(weight))
        if known is not None:
            found[id(weight)] = LayerSpec(
                known.name,
                known.kind,
                known.shape,
                known.groups,
                known.rows,
                known.columns,
                (*known.aliases, name),
            )
            continue
        rows, columns = weight.shape[0], weight[0].numel()
        found[id(weight)] = LayerSpec(
            name, kind, tuple(weight.shape), getattr(module, "groups", 1), rows, columns
        )
    if not found:
        raise ModelError(
            "the model has no Conv1d, Conv2d or Linear module, so there is nothing to compress"
        )
    return list(found.values())


def to_matrix(weight: Tensor, spec: LayerSpec) -> Tensor:
    """weight [rows, channels, *kernel] -> [rows, columns], channel last."""
    return weight.movedim(1, -1).reshape(spec.rows, spec.columns)


def from_matrix(matrix: Tensor, spec: LayerSpec) -> Tensor:
    """The inverse of `to_matrix`; contiguous."""
    kernel = spec.shape[2:]
    return matrix.reshape(spec.shape[0], *kernel, spec.shape[1]).movedim(-1, 1).contiguous()


def count_macs(model: nn.Module, layers: Sequence[LayerSpec], example: Tensor) -> dict[str, int]:
    """Multiply-accumulates per sample of every layer's matrix product, measured by one pass of
    `example` [n, ...]. A layer that is called several times counts every call. Raises ModelError
    naming a layer that the pass did not call."""
    counts = dict.fromkeys((layer.name for layer in layers), 0)
    specs = {layer.name: layer for layer in layers}

    def count(name: str, _module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        spec = specs[name]
        positions = output.numel() // (output.shape[0] * spec.rows)
        counts[name] += positions * spec.rows * spec.columns

    modules = dict(model.named_modules(remove_duplicate=False))
    with torch.no_grad(), hooked() as handles:
        for layer in layers:
            for name in (layer.name, *layer.aliases):
                if name != layer.name and modules[name] is modules[layer.name]:
                    continue  # the same module under two names fires one hook per call
                hook = _bind(count, layer.name)
                handles.append(modules[name].register_forward_hook(hook))
        call(model, example)
    if idle := [name for name, macs in counts.items() if not macs]:
        raise ModelError(
            f"layer {idle[0]!r} is never called when the model runs; remove it from the model"
        )
    return counts


@contextmanager
def hooked() -> Iterator[list[RemovableHandle]]:
    """A list for hook handles; all are removed in the end, whatever happens."""
    handles: list[RemovableHandle] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _bind(function: Any, name: str) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        function(name, module, inputs, output)

    return hook
