"""What a model's outputs are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from apportion.compressors.errors import ModelError


def field(outputs: Any, name: str, index: int = 0) -> Tensor:
    """The tensor `name` of a model's outputs: by key or attribute where these have names; else the
    one at `index` of a tuple or list, which is what an exported model gives; else the one tensor
    itself. Raises ModelError where there is none."""
    if isinstance(outputs, Tensor) and index == 0:
        return outputs
    if isinstance(outputs, Mapping):
        found = outputs.get(name)
    elif hasattr(outputs, name):
        found = getattr(outputs, name)
    elif isinstance(outputs, (tuple, list)) and index < len(outputs):
        found = outputs[index]
    else:
        found = None
    if not isinstance(found, Tensor):
        raise ModelError(
            f"the model gives no tensor {name!r}: its outputs are {_described(outputs)}"
        )
    return found


def _described(outputs: Any) -> str:
    if isinstance(outputs, Mapping):
        return f"a dict of {', '.join(map(str, outputs))}"
    if isinstance(outputs, (tuple, list)):
        return f"{len(outputs)} of a {type(outputs).__name__}"
    return f"a {type(outputs).__name__}"
