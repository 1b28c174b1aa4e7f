"""Layers of a smaller model fitted one after the other to what they put out in the dense one, from
the inputs that they get now, whose errors they so make up for too (Luo et al. 2017, "ThiNet"; He et
al. 2017, "Channel Pruning", section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apportion.compressors.calibration import Calibration
from apportion.compressors.groups.find import Grouped
from apportion.compressors.groups.readers import Kept
from apportion.compressors.kinds.feeding import first_tensor, module_columns, plain
from apportion.compressors.layers import LayerSpec, from_matrix, hooked, to_matrix
from apportion.compressors.progress import Progress, silent


def reconstruct(
    small: nn.Module,
    dense: nn.Module,
    grouped: Grouped,
    layers: Sequence[LayerSpec],
    kept: Kept,
    calibration: Calibration,
    damping: float = 1e-3,
    progress: Progress = silent,
) -> None:
    """Fit the layers of `small`, in place, in their order; a pass of both models for each. Layers
    that are not a convolution's or linear module's plain weight, or grouped, stay as they are.

    Args:
        small: a narrowed copy of `dense`, in eval mode as that.
        dense: what it was made from.
        grouped: channel groups of `dense`.
        layers: of `dense`, in the order in which they run.
        kept: group -> bool [its channels], which stayed.
        calibration: the data; both models see every batch.
        damping: share of the inputs' mean square that holds weights where they are.
        progress: told of layers.
    """
    for done, layer in enumerate(layers):
        progress("fit layers", done, len(layers))
        if not layer.is_module_weight or layer.groups > 1:
            continue
        if not plain(small.get_submodule(layer.name)):
            continue
        rows = torch.from_numpy(_rows(grouped, layer, kept).nonzero()[0])
        sums = _Sums(small.get_submodule(layer.name), rows)
        with hooked() as handles:
            target = dense.get_submodule(layer.name)
            handles.append(target.register_forward_hook(sums.wanted, with_kwargs=True))
            own = small.get_submodule(layer.name)
            handles.append(own.register_forward_hook(sums.got, with_kwargs=True))
            both = _Both(dense, small)
            calibration.run(both)
        _fit(small, layer, sums, grouped.norms.get(layer.name), damping)


class _Both(nn.Module):
    """Two models on the same batch, one after the other."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self._models = [first, second]  # not as children: their hooks and modes are their own

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._models[0](*args, **kwargs)
        return self._models[1](*args, **kwargs)


@dataclass
class _Sums:
    """Of X [positions, d] and the wanted Y [positions, rows] over all batches, float64."""

    module: nn.Module
    rows: Tensor
    xx: Tensor | None = None
    xy: Tensor | None = None
    x: Tensor | None = None
    y: Tensor | None = None
    count: int = 0

    def wanted(self, _module: nn.Module, _args: Any, _kwargs: Any, out: Tensor) -> None:
        self._y = self._flat(out)

    def got(self, module: nn.Module, args: Any, kwargs: Any, out: Tensor) -> None:  # noqa: ARG002
        weight = module.weight
        assert isinstance(weight, Tensor)
        columns = weight[0].numel()
        x = module_columns(module, first_tensor(args, kwargs), columns)[0].double()
        y = self._y.double()
        self.count += len(x)
        for name, value in (("xx", x.T @ x), ("xy", x.T @ y), ("x", x.sum(0)), ("y", y.sum(0))):
            before = getattr(self, name)
            setattr(self, name, value if before is None else before + value)

    def _flat(self, out: Tensor) -> Tensor:
        if isinstance(self.module, nn.Linear):
            return out.reshape(-1, out.shape[-1])[:, self.rows]
        return out.movedim(1, -1).reshape(-1, out.shape[1])[:, self.rows]


def _rows(grouped: Grouped, layer: LayerSpec, kept: Kept) -> np.ndarray:
    """Which of the layer's rows stayed, bool."""
    stays = np.ones(layer.rows, bool)
    for group in grouped.groups:
        own = group.makers.get(layer.name)
        if own is not None and group.name in kept:
            stays &= (own < 0) | kept[group.name][own]
    return stays


def _fit(small: nn.Module, layer: LayerSpec, sums: _Sums, norm: str | None, damping: float) -> None:
    module: Any = small.get_submodule(layer.name)
    weight: Tensor = module.weight.detach()
    shape = tuple(weight.shape)
    spec = LayerSpec(layer.name, layer.kind, shape, 1, shape[0], weight[0].numel())
    before = to_matrix(weight, spec).double()
    if sums.xx is None or sums.xy is None or sums.x is None or sums.y is None:
        return  # never run
    mean_x, mean_y = sums.x / sums.count, sums.y / sums.count
    xx = sums.xx - sums.count * mean_x[:, None] * mean_x
    xy = sums.xy - sums.count * mean_x[:, None] * mean_y
    held = damping * xx.diagonal().mean().clamp_min(1e-12) * torch.eye(len(xx)).double()
    change = torch.linalg.solve(xx + held, xy - xx @ before.T)
    made = before + change.T
    left = mean_y - made @ mean_x  # what is missing on average, any bias included
    with torch.no_grad():
        module.weight.copy_(from_matrix(made.float(), spec))
        if module.bias is not None:
            module.bias.copy_(left.to(module.bias.dtype))
        elif norm is not None:
            _lower(small, norm, left)


def _lower(small: nn.Module, mean: str, left: Tensor) -> None:
    path, _, name = mean.rpartition(".")
    buffers: Mapping[str, Tensor | None] = small.get_submodule(path)._buffers
    running = buffers[name]
    assert running is not None
    running.sub_(left.to(running.dtype))
