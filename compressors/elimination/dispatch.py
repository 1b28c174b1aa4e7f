"""ExactOBS's greedy eliminations: compiled loops on the CPU, a Triton kernel on CUDA, factored
torch where there is neither. Same choices, same result up to rounding; see `removal`, `fused` and
`factored` for how, and `textbook` for what."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apportion.compressors.elimination import descent, factored
from apportion.compressors.grids import Grid

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a computation may take: `memory`, bytes besides its arguments and result; `threads` of
    the CPU. They change no result."""

    memory: int = 1 << 30
    threads: int = 1


def eliminate(weight: Tensor, hinv: Tensor, limits: Limits = Limits()) -> tuple[Tensor, Tensor]:
    """As `textbook.eliminate`: order [rows, d] int64 and losses [rows, d], on the device of
    `weight`."""
    if kernel := _kernel("unstructured", weight):
        with _threads(hinv, limits) as threads:
            order, losses = kernel(*_arrays(weight, hinv), threads)
        return torch.from_numpy(order), torch.from_numpy(losses)
    return _cat(_form(w).eliminate(w, hinv) for w in _chunks(weight, limits))


def eliminate_blocks(
    weight: Tensor, hinv: Tensor, block: int, limits: Limits = Limits()
) -> tuple[Tensor, Tensor]:
    """As `textbook.eliminate_blocks`: order and losses of blocks, [rows, d / block]."""
    if kernel := _kernel("blocks", weight):
        with _threads(hinv, limits) as threads:
            order, losses = kernel(*_arrays(weight, hinv), block, threads)
        return torch.from_numpy(order), torch.from_numpy(losses)
    return _cat(factored.eliminate_blocks(w, hinv, block) for w in _chunks(weight, limits))


def prune_n_of_m(weight: Tensor, hinv: Tensor, n: int, m: int, limits: Limits = Limits()) -> Tensor:
    """As `textbook.prune_n_of_m`.

    Args:
        weight: [rows, d].
        hinv: H^-1, [d, d].
        n: weights that stay in every group.
        m: consecutive columns that are a group; a divisor of d.
        limits: of memory and threads.

    Returns:
        Weights, [rows, d], on the device of `weight`.
    """
    if kernel := _kernel("n_of_m", weight):
        with _threads(hinv, limits) as threads:
            return torch.from_numpy(kernel(*_arrays(weight, hinv), n, m, threads))
    return torch.cat([_form(w).prune_n_of_m(w, hinv, n, m) for w in _chunks(weight, limits)])


def quantize(
    weight: Tensor, hinv: Tensor, grid: Grid, fixed: Tensor, limits: Limits = Limits()
) -> Tensor:
    """As `textbook.quantize`.

    Args:
        weight: [rows, d].
        hinv: H^-1, [d, d].
        grid: of each row, of all, or of groups of columns; with a codebook or not.
        fixed: bool [rows, d], weights that are zero and stay it.
        limits: of memory and threads.

    Returns:
        Weights, [rows, d], all on the grid, on the device of `weight`.
    """
    grid, shift = grid.shifted(fixed)
    if shift is not None:  # it moves no error, and an elimination sees nothing else
        shift = shift.to(weight)
        return quantize(weight - shift, hinv, grid, fixed, limits) + shift
    if grid.plain and (kernel := _kernel("quantize", weight)):
        scale, zero = (
            t.to(weight.dtype).expand(len(weight), 1).squeeze(1).contiguous().numpy()
            for t in (grid.scale, grid.zero)
        )
        highest = scale.dtype.type(2**grid.bits - 1)
        with _threads(hinv, limits) as threads:
            w, h = _arrays(weight, hinv)
            return torch.from_numpy(
                kernel(w, fixed.contiguous().numpy(), h, scale, zero, highest, threads)
            )
    if kernel := _kernel("grouped", weight):
        return _by_groups(kernel, weight, hinv, grid, fixed, limits)
    parts, start = [], 0
    for w in _chunks(weight, limits):
        rows = slice(start, start + len(w))
        parts.append(_form(w).quantize(w, hinv, grid.rows(rows), fixed[rows]))
        start += len(w)
    return torch.cat(parts)


def _by_groups(
    kernel: Callable[..., Any],
    weight: Tensor,
    hinv: Tensor,
    grid: Grid,
    fixed: Tensor,
    limits: Limits,
) -> Tensor:
    """`quantize` by `grouped.quantize`; the arguments are those of both."""
    with _threads(hinv, limits) as threads:
        w, h = _arrays(weight, hinv)
        scale, zero, *others = _steps(weight, grid)
        made = kernel(
            w, fixed.contiguous().numpy(), h, scale, zero, *others,
            scale.dtype.type(grid.spacing), threads,
        )  # fmt: skip
    return torch.from_numpy(made)


def _steps(weight: Tensor, grid: Grid) -> tuple[Any, ...]:
    """Scales and zeros [rows, groups], columns of a group, the highest code, and the codebook's
    bounds and values, for compiled loops over weights [rows, d]."""
    scale, zero = (
        t.to(weight.dtype).expand(len(weight), -1).contiguous().numpy()
        for t in (grid.scale, grid.zero)
    )
    empty = weight.new_empty(0)
    book = (empty, empty)
    if grid.book is not None:
        book = (grid.book.bounds(weight.dtype), grid.book.values.to(weight.dtype))
    highest = scale.dtype.type(2**grid.bits - 1)
    return scale, zero, grid.group or weight.shape[1], highest, _arrays(*book)


def descend(
    weight: Tensor,
    start: Tensor,
    hessian: Tensor,
    grid: Grid,
    fixed: Tensor,
    limits: Limits = Limits(),
) -> Tensor:
    """`descent.descend`, compiled where that can be; the arguments are the same, and the limits of
    memory and threads."""
    grid, shift = grid.shifted(fixed)
    if shift is not None:
        shift = shift.to(weight)
        return descend(weight - shift, start - shift, hessian, grid, fixed, limits) + shift
    if kernel := _kernel("descend", weight):
        slopes = (start - weight) @ hessian
        with _threads(hessian, limits) as threads:
            made = kernel(
                *_arrays(start, slopes), fixed.contiguous().numpy(), *_arrays(hessian),
                *_steps(weight, grid), descent.PASSES, threads,
            )  # fmt: skip
        return torch.from_numpy(made)
    return descent.descend(weight, start, hessian, grid, fixed)


def reconstruct(
    weight: Tensor, hinv: Tensor, order: Tensor, counts: Tensor, limits: Limits = Limits()
) -> Tensor | None:
    """The weights between an elimination's removals, from its order alone.

    Args:
        weight: [rows, d].
        hinv: H^-1, [d, d].
        order: int64 [rows, d], columns in the order in which they go.
        counts: int64 [rows, levels], how many of them are gone at each level.
        limits: of memory and threads.

    Returns:
        Weights, float32 [levels, rows, d], the columns that are left having made up for those that
        are gone; NaN where the precision does not do. None where the compiled form is not to be
        had.
    """
    if kernel := _kernel("reconstruct", weight):
        with _threads(hinv, limits) as threads:
            return torch.from_numpy(kernel(*_arrays(weight, hinv, order, counts), threads))
    return None


def _chunks(weight: Tensor, limits: Limits) -> Iterator[Tensor]:
    """Rows of which as many d x d matrices, twice, fit the memory."""
    return iter(
        weight.split(max(1, limits.memory // (2 * weight.element_size() * weight.shape[1] ** 2)))
    )


def _cat(parts: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    first, second = zip(*parts, strict=True)
    return torch.cat(first), torch.cat(second)


def _kernel(name: str, weight: Tensor) -> Callable[..., Any] | None:
    return _kernels().get(name) if weight.device.type == "cpu" else None


@functools.cache
def _kernels() -> dict[str, Callable[..., Any]]:
    """The compiled kernels by name; none without numba."""
    try:
        from apportion.compressors.elimination import (
            descent_loops,
            grouped,
            kernels,
            reconstruction,
        )
    except ImportError:
        log.warning(
            "numba is not installed (apportion[fast]): layers are compressed several times slower"
        )
        return {}
    return {
        "unstructured": kernels.unstructured,
        "blocks": kernels.blocks,
        "n_of_m": kernels.n_of_m,
        "quantize": kernels.quantize,
        "grouped": grouped.quantize,
        "descend": descent_loops.descend,
        "reconstruct": reconstruction.reconstruct,
    }


def _form(weight: Tensor) -> Any:
    """The module whose functions take the rows at once: the kernel of CUDA devices where it works,
    or plain torch."""
    return factored if weight.device.type == "cpu" else _fused(weight.device) or factored


@functools.cache
def _fused(device: torch.device) -> Any:
    try:
        from apportion.compressors.elimination import fused
    except ImportError:
        log.warning("triton is not installed: layers are compressed in plain torch on %s", device)
        return None
    return fused if fused.works_on(device) else None


@contextmanager
def _threads(hinv: Tensor, limits: Limits) -> Iterator[int]:
    """As many threads as the limits allow, with half a d x d matrix and the factor for each."""
    import numba

    size = hinv.numel() * hinv.element_size()
    before = numba.get_num_threads()
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    threads = max(1, min(limits.threads, most, limits.memory // size))
    numba.set_num_threads(threads)
    try:
        yield threads
    finally:
        numba.set_num_threads(before)


def _arrays(*tensors: Tensor) -> tuple[Any, ...]:
    return tuple(t.contiguous().numpy() for t in tensors)
