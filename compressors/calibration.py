"""Running a model over calibration data, for whatever watches it by hooks or modes.

Every implementation calls every module exactly when the model does, and a module that a pass calls
once sees the batches in their order: what watches need not know which implementation runs.
`FullPass` is the plain one; compressors/blocks.py has one for models that are too large for their
device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from apportion.compressors.errors import DataError
from apportion.compressors.progress import Progress, silent

Batch = Any
"""Any tree of tensors: a tensor, tuple, list or dict."""
Inside = Callable[[Batch], AbstractContextManager[Any]]
"""What a batch's forward pass runs in."""


def count_samples(batch: Batch) -> int:
    """The leading dimension of the first tensor. Raises DataError where there is none."""
    first = next((t for t in tree_leaves(batch) if isinstance(t, Tensor)), None)
    if first is None or not first.dim():
        raise DataError("calibration", "a batch holds no tensor with a dimension for its samples")
    return len(first)


def call(model: Callable[..., Any], batch: Batch) -> Any:
    """A dict's values by keyword, a tuple's one by one, anything else as the one input."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


@dataclass(frozen=True)
class Calibration(ABC):
    """batches: gives the data anew at each call; samples: how many a batch holds; forward: feeds a
    batch to a model; count: how many batches there are, for progress (0: not known)."""

    batches: Callable[[], Iterable[Batch]]
    samples: Callable[[Batch], int] = count_samples
    forward: Callable[[nn.Module, Batch], Any] = call
    count: int = 0

    @abstractmethod
    def run(
        self,
        model: nn.Module,
        inside: Inside | None = None,
        progress: Progress = silent,
        what: str = "run the calibration data",
    ) -> int:
        """Every batch through `model` once, without gradients, as the model is (eval mode is the
        caller's).

        Args:
            inside: what each batch's forward pass runs in.
            progress: told of `what`, by batches or by blocks.
            what: the work that is done.

        Returns:
            The number of samples.
        """

    def on(self, device: str) -> Self:
        """The same pass, its batches on `device`."""

        def placed(leaf: Any) -> Any:
            return leaf.to(device) if isinstance(leaf, Tensor) else leaf

        return replace(self, batches=lambda: (tree_map(placed, b) for b in self.batches()))

    def one(self, model: nn.Module, batch: Batch, inside: Inside | None) -> None:
        """One batch's forward pass."""
        with torch.no_grad(), inside(batch) if inside else nullcontext():
            self.forward(model, batch)


class FullPass(Calibration):
    """Batch after batch; no more than two of them are alive at a time."""

    def run(
        self,
        model: nn.Module,
        inside: Inside | None = None,
        progress: Progress = silent,
        what: str = "run the calibration data",
    ) -> int:
        total = 0
        for done, batch in enumerate(self.batches()):
            progress(what, done, max(self.count, done + 1))
            self.one(model, batch, inside)
            total += self.samples(batch)
        progress(what, 1, 1)
        return total


def over(*batches: Batch) -> FullPass:
    """A full pass over these batches."""
    return FullPass(lambda: batches, count=len(batches))
