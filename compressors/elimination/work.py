"""How the work on one layer is cut into tasks of a few rows, and where those run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apportion.compressors.elimination.dispatch import Limits
from apportion.compressors.machine import free_memory
from apportion.compressors.progress import Progress, silent

Mapper = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[Any]]
"""map(function, tasks) yields function(*task) for every task, in their order."""

_DOUBLE_UP_TO = 1152
"""Columns up to which layers are compressed in double precision: there it costs little. Beyond,
single precision of an inverse that was taken in double precision keeps layer errors to 1e-4."""
_TASK_FLOPS = 2.5e11
"""One to three seconds of one CPU core: often enough to show progress and to share a large layer
among workers."""


@dataclass(frozen=True, slots=True)
class Group:
    """One group of a layer: weights [rows, d], H^-1 [d, d], and the columns [d] that are alive; the
    others' weights are zero, and H^-1 has the identity's rows and columns there."""

    weight: Tensor
    hinv: Tensor
    alive: Tensor


@dataclass(frozen=True, slots=True)
class Work:
    """`limits` of every task."""

    limits: Limits
    mapper: Mapper | None = None
    progress: Progress = silent
    title: str = ""

    def rows_at_once(self, group: Group) -> int:
        """Rows of one task. A GPU is best used by all rows at once, as far as they fit the memory
        (see `elimination`)."""
        if group.weight.device.type != "cpu":
            return max(1, len(group.weight))
        return max(8, int(_TASK_FLOPS / max(1, group.weight.shape[1] ** 3)))

    def map(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """`function(*task)` of each task, in order, by the mapper where there is one."""
        results = (
            self.mapper(function, tasks) if self.mapper else (function(*task) for task in tasks)
        )
        for done, result in enumerate(results):
            if len(tasks) > 2:
                self.progress(f"{self.title}, rows", done + 1, len(tasks))
            yield result


def precision(columns: int) -> torch.dtype:
    """The floating type that a layer of so many columns is compressed in."""
    return torch.float64 if columns <= _DOUBLE_UP_TO else torch.float32


def default_memory(device: torch.device) -> int:
    """A quarter of the memory that this process may still take, or half of the device's, in
    bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    free = free_memory()
    return 1 << 30 if free is None else max(1 << 28, free // 4)
