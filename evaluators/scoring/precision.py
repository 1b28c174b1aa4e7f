"""In which numbers candidates are scored."""

from __future__ import annotations

import torch
from torch import Tensor

from apportion.compressors.errors import UnknownNameError

PRECISIONS = ("float32", "bf16")


def check_precision(name: str) -> str:
    """Raises UnknownNameError."""
    if name not in PRECISIONS:
        raise UnknownNameError("precision", name, PRECISIONS)
    return name


def channels_last(x: Tensor) -> Tensor:
    """Images [N, C, H, W] with their channels last in memory."""
    return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
