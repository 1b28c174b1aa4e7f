"""Layer Hessians, H = 2 X X^T / N (Frantar & Alistarh 2022, section 3), streamed over calibration
batches."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apportion.compressors.calibration import call, count_samples
from apportion.compressors.errors import LayerError
from apportion.compressors.layers import LayerSpec, hooked
from apportion.compressors.progress import Progress

log = logging.getLogger(__name__)
_CHUNK_VALUES = 1 << 25
"""Unfolded inputs held at once, in values: a batch is cut into chunks of samples below it."""


def collect_hessians(
    model: nn.Module,
    layers: Sequence[LayerSpec],
    batches: Iterable[Tensor],
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Layer name -> H [groups, d, d], float64, on the model's device; columns as in
    `layers.to_matrix`. X are the layer's unfolded inputs, N the number of samples. The model runs
    as it is (eval mode is the caller's). Raises LayerError where an H is not finite."""
    modules = dict(model.named_modules(remove_duplicate=False))
    sums = {
        layer.name: torch.zeros(layer.groups, layer.columns, layer.columns, dtype=torch.float64)
        for layer in layers
    }
    samples = 0

    def add(layer: LayerSpec, module: nn.Module, x: Tensor) -> None:
        if sums[layer.name].device != x.device:
            sums[layer.name] = sums[layer.name].to(x.device)
        _accumulate(sums[layer.name], layer, module, x.detach())

    listed = list(batches) if progress else batches
    with torch.no_grad(), hooked() as handles:
        for layer in layers:
            seen: set[int] = set()
            for name in (layer.name, *layer.aliases):
                if id(modules[name]) not in seen:
                    seen.add(id(modules[name]))
                    handles.append(modules[name].register_forward_pre_hook(_bind(add, layer)))
        for done, inputs in enumerate(listed):
            if progress:
                progress("collect Hessians", done, len(listed))  # type: ignore[arg-type]
            call(model, inputs)
            samples += count_samples(inputs)
    if progress:
        progress("collect Hessians", 1, 1)
    for name, total in sums.items():
        total.mul_(2.0 / max(1, samples))
        if not torch.isfinite(total).all():
            raise LayerError(
                name,
                "its Hessian is not finite: the calibration data drives its inputs to NaN or "
                "infinity",
            )
    return sums


def inverse(hessian: Tensor, damping: float, layer: str = "") -> tuple[Tensor, Tensor]:
    """H [d, d] -> (H^-1 of the columns that are alive [a, a], float64, and the mask of those
    columns [d], bool).

    A dead column has a zero diagonal: no input ever reaches it. `damping` adds that share of the
    mean diagonal; where the Hessian is singular all the same, the smallest power of ten (from 1e-8)
    that makes it positive definite is added, and logged."""
    alive = hessian.diagonal() > 0
    h = hessian[alive][:, alive].double()
    if not len(h):
        return h, alive
    mean = h.diagonal().mean()
    eye = torch.eye(len(h), dtype=h.dtype, device=h.device)
    share = damping
    while True:
        factor, info = torch.linalg.cholesky_ex(h + share * mean * eye)
        if not info and bool((factor.diagonal() ** 2 > 1e-12 * mean).all()):
            break
        share = max(1e-8, share * 10)
    if share > damping:
        log.warning("layer %s: singular Hessian, damped by %g of its mean diagonal", layer, share)
    return torch.cholesky_inverse(factor), alive


def unfold(layer: LayerSpec, module: nn.Module, x: Tensor) -> Tensor:
    """The layer's input as [groups, positions, d]: every row is what one output position multiplies
    with."""
    if layer.kind == "linear":
        return x.reshape(1, -1, layer.columns)
    conv: Any = module
    if conv.padding_mode != "zeros":
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
        padding: Any = (0,) * (x.dim() - 2)
    elif conv.padding == "same":
        x = F.pad(x, conv._reversed_padding_repeated_twice)
        padding = (0,) * (x.dim() - 2)
    else:
        padding = (0,) * (x.dim() - 2) if conv.padding == "valid" else conv.padding
    kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
    if layer.kind == "conv1d":
        x = x.unsqueeze(2)
        kernel, stride, dilation, padding = (
            (1, *kernel),
            (1, *stride),
            (1, *dilation),
            (0, *padding),
        )
    columns = F.unfold(
        x, kernel, dilation, padding, stride
    )  # [n, channels * kernel, positions], kernel fastest
    n, positions = len(x), columns.shape[-1]
    size = kernel[0] * kernel[1]
    columns = columns.reshape(
        n, layer.groups, -1, size, positions
    )  # [n, g, channels of the group, kernel, positions]
    return columns.permute(1, 0, 4, 3, 2).reshape(layer.groups, n * positions, layer.columns)


def _accumulate(total: Tensor, layer: LayerSpec, module: nn.Module, x: Tensor) -> None:
    per_sample = x[:1].numel() * max(1, layer.columns * layer.groups // max(1, x.shape[1]))
    step = max(1, _CHUNK_VALUES // max(1, per_sample))
    for start in range(0, len(x), step):
        columns = unfold(layer, module, x[start : start + step]).double()
        torch.baddbmm(total, columns.transpose(1, 2), columns, out=total)


def _bind(add: Any, layer: LayerSpec) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        add(layer, module, inputs[0])

    return hook
