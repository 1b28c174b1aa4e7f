"""What a model's outputs are called."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from apportion.compressors.errors import ModelError
from apportion.evaluators.data import trees


def field(outputs: Any, name: str, index: int) -> Tensor:
    """The tensor called `name`, as an attribute or a key, where there is one; else the `index`-th
    tensor, which is what an exported ONNX model gives. Raises ModelError."""
    found = outputs.get(name) if isinstance(outputs, dict) else getattr(outputs, name, None)
    if isinstance(found, Tensor):
        return found
    tensors = trees.tensors(outputs)
    if index >= len(tensors):
        raise ModelError(f"the model's outputs hold no tensor {name!r}")
    return tensors[index]
