"""Calibration data: how a batch is fed to a model, and how many samples it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from apportion.compressors.errors import DataError

Batch = Any
"""Any tree of tensors: a tensor, tuple, list or dict."""


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
