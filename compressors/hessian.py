"""Layer Hessians, H = 2 X X^T / N (Frantar & Alistarh 2022, section 3), streamed over calibration
data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apportion.compressors.calibration import Calibration
from apportion.compressors.errors import LayerError
from apportion.compressors.kinds.collect import CHUNK_VALUES, Collector
from apportion.compressors.kinds.feeding import first_tensor, module_columns
from apportion.compressors.kinds.watch import unfused, unhurried
from apportion.compressors.layers import LayerSpec, hooked, layer_modules
from apportion.compressors.progress import Progress, silent

log = logging.getLogger(__name__)


def collect_hessians(
    model: nn.Module,
    layers: Sequence[LayerSpec],
    calibration: Calibration,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Layer name -> H, float64, on the model's device: [groups, d, d] with columns as in
    `layers.to_matrix`; of a table, whose rows are looked up, [rows, 1]. X are what the layer's
    weight is multiplied with, N the number of samples. The model runs as it is (eval mode is the
    caller's). Raises LayerError where an H is not finite."""
    sums = {own.name: torch.zeros(own.hessian_shape, dtype=torch.float64) for own in layers}
    traced = not all(layer.by_module for layer in layers)

    def inside(batch: Any) -> Collector:
        return Collector(model, batch, layers, sums)

    with hooked() as handles, unfused(model) if traced else unhurried():
        if not traced:
            _watch_modules(model, layers, sums, handles)
        samples = calibration.run(model, inside if traced else None, progress, "collect Hessians")
    for name, total in sums.items():
        total.mul_(2.0 / max(1, samples))
        if not torch.isfinite(total).all():
            raise LayerError(
                name,
                "its Hessian is not finite: the calibration data drives its inputs to NaN or "
                "infinity",
            )
    return sums


def _watch_modules(
    model: nn.Module,
    layers: Sequence[LayerSpec],
    sums: dict[str, Tensor],
    handles: list[RemovableHandle],
) -> None:
    """Hooks on the layers' own modules: several times as fast as a traced pass."""

    def add(layer: LayerSpec, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = first_tensor(args, kwargs).detach()
        if sums[layer.name].device != x.device:
            sums[layer.name] = sums[layer.name].to(x.device)
        _accumulate(sums[layer.name], layer, module, x)

    for layer, module in layer_modules(model, layers):
        hook = partial(add, layer)
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))


def inverse(
    hessian: Tensor, damping: float, layer: str = "", most: float = float("inf")
) -> tuple[Tensor, Tensor]:
    """H [d, d] -> (H^-1 of the columns that are alive [a, a], float64, and the mask of those
    columns [d], bool).

    A dead column has a zero diagonal: no input ever reaches it. `damping` adds that share of the
    mean diagonal; where the Hessian is singular all the same, or a variance inflation factor
    H_jj H^-1_jj (how nearly column j follows from the others) is above `most`, the smallest power
    of ten (from 1e-8) that cures it is added, and logged."""
    alive = hessian.diagonal() > 0
    h = hessian[alive][:, alive].double()
    if not len(h):
        return h, alive
    mean = h.diagonal().mean()
    share = damping
    while True:
        damped = h.clone()
        damped.diagonal().add_(share * mean)
        factor, info = torch.linalg.cholesky_ex(damped)
        del damped  # 970 MB of 11,008 columns
        if not info and bool((factor.diagonal() ** 2 > 1e-12 * mean).all()):
            found = torch.cholesky_inverse(factor)
            if bool((h.diagonal() * found.diagonal() <= most).all()):
                break
        share = max(1e-8, share * 10)
    if share > damping:
        log.warning("layer %s: singular Hessian, damped by %g of its mean diagonal", layer, share)
    return found, alive


def _accumulate(total: Tensor, layer: LayerSpec, module: nn.Module, x: Tensor) -> None:
    per_sample = x[:1].numel() * max(1, layer.columns * layer.groups // max(1, x.shape[1]))
    step = max(1, CHUNK_VALUES // max(1, per_sample))
    for start in range(0, len(x), step):
        columns = module_columns(module, x[start : start + step], layer.columns).double()
        torch.baddbmm(total, columns.transpose(1, 2), columns, out=total)
