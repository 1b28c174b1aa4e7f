"""ExactOBS's greedy eliminations: compiled where that is possible, the textbook's otherwise. Same choices, same result up to
rounding; see `kernels` for how, and `textbook` for what."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compressors import textbook
from compressors.grids import Grid

log = logging.getLogger(__name__)


def eliminate(weight: Tensor, hinv: Tensor) -> tuple[Tensor, Tensor]:
    """As `textbook.eliminate`: order [rows, d] int64 and losses [rows, d], on the device of `weight`."""
    kernel = _kernel("unstructured", weight)
    if kernel is None:
        return textbook.eliminate(weight, hinv)
    order, losses = kernel(*_arrays(weight, hinv))
    return torch.from_numpy(order), torch.from_numpy(losses)


def eliminate_blocks(weight: Tensor, hinv: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """As `textbook.eliminate_blocks`: order and losses of blocks, [rows, d / block]."""
    kernel = _kernel("blocks", weight)
    if kernel is None:
        return textbook.eliminate_blocks(weight, hinv, block)
    order, losses = kernel(*_arrays(weight, hinv), block)
    return torch.from_numpy(order), torch.from_numpy(losses)


def prune_n_of_m(weight: Tensor, hinv: Tensor, n: int, m: int) -> Tensor:
    """As `textbook.prune_n_of_m`: weights [rows, d]."""
    kernel = _kernel("n_of_m", weight)
    return textbook.prune_n_of_m(weight, hinv, n, m) if kernel is None else torch.from_numpy(kernel(*_arrays(weight, hinv), n, m))


def quantize(weight: Tensor, hinv: Tensor, grid: Grid) -> Tensor:
    """As `textbook.quantize`: weights [rows, d], all on the grid."""
    kernel = _kernel("quantize", weight)
    if kernel is None:
        return textbook.quantize(weight, hinv, grid)
    scale, zero = grid.scale.double().squeeze(1).numpy(), grid.zero.double().squeeze(1).numpy()
    return torch.from_numpy(kernel(*_arrays(weight, hinv), scale, zero, float(2**grid.bits - 1)))


def _kernel(name: str, weight: Tensor) -> Callable[..., Any] | None:
    found = _kernels() if weight.device.type == "cpu" else None
    return None if found is None else getattr(found, name)


@functools.cache
def _kernels() -> Any:
    """The compiled kernels, or None without numba."""
    try:
        from compressors import kernels
    except ImportError:
        log.warning("numba is not installed (apportion[fast]): layers are compressed by the slow textbook algorithm")
        return None
    return kernels


def _arrays(weight: Tensor, hinv: Tensor) -> tuple[Any, Any]:
    return weight.contiguous().numpy(), hinv.contiguous().numpy()
