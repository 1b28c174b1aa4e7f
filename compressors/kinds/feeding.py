"""Modules whose input is what their weight is multiplied with, so that a hook on the module sees
(or changes) what the product gets.

Only a module that runs torch's own `forward` tells that; a subclass with a `forward` of its own may
pad, scale or reshape first, and is left to the traced pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from apportion.compressors.kinds.convolution import geometry_of, padded

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_TRANSPOSED_LINEAR = ("transformers.pytorch_utils", "Conv1D.forward")
"""transformers' linear layer with weights [inputs, outputs], as GPT-2 has it."""


def plain(module: nn.Module) -> bool:
    """Whether the module does nothing to its input but multiply its weight with it (and pad it, if
    it is a convolution that says so)."""
    if isinstance(module, torch.jit.ScriptModule) or "forward" in vars(module):
        return False
    forward = type(module).forward
    if (forward.__module__, forward.__qualname__) == _TRANSPOSED_LINEAR:
        return True
    if isinstance(module, nn.Linear):
        return forward is nn.Linear.forward
    base: Any = next((c for c in _CONVOLUTIONS if isinstance(module, c)), None)
    if base is None or forward is not base.forward:
        return False
    inner = "_conv_forward"
    return getattr(type(module), inner, None) is getattr(base, inner, None)


def module_columns(module: nn.Module, x: Tensor, columns: int) -> Tensor:
    """The input of a plain module as X [groups, positions, columns]."""
    if not isinstance(module, _CONVOLUTIONS):
        return x.reshape(1, -1, columns)
    geometry = geometry_of(module)
    batch = x if x.dim() == len(geometry.kernel) + 2 else x[None]
    return geometry.columns(padded(module, batch))


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """A module's input, however it was called. Raises TypeError without one."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise TypeError("a module was called without a tensor")


def with_first(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with another input."""
    whole = dict(kwargs)
    for i, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:i], change(value), *args[i + 1 :]), whole
    for key, value in whole.items():
        if isinstance(value, Tensor):
            return args, {**whole, key: change(value)}
    raise TypeError("a module was called without a tensor")
