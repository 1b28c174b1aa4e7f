"""Tensors of a model that share memory without being one: copies of the model, which everything
works on, would lose that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from apportion.compressors.errors import ModelError

_OWN = ("_parameters", "_buffers", "_modules")


def share_by_storage(model: nn.Module, name: str) -> None:
    """Make parameters that are the same view of the same memory one Parameter, and buffers one
    tensor, in place: they are then counted, compressed and exported once. Buffers that are parts of
    each other get memory of their own. Raises ModelError where a parameter shares memory in another
    way: what is written to the one would change the other."""
    first: dict[object, Tensor] = {}
    for module, own, _ in list(_places(model)):
        tensor = getattr(module, own)
        known = first.setdefault(_view(tensor), tensor)
        if known is not tensor and type(known) is type(tensor):
            setattr(module, own, known)  # as torch's own modules expect it: RNNs keep a list
    named = {id(getattr(module, own)): path for module, own, path in reversed([*_places(model)])}
    held = {id(getattr(module, own)): getattr(module, own) for module, own, _ in _places(model)}
    for one, other in _overlapping([*held.values(), *_plain(model, held)]):
        if not isinstance(one, nn.Parameter) and not isinstance(other, nn.Parameter):
            continue
        raise ModelError(
            f"model {name!r}: {_said(one, named)} and {_said(other, named)} share memory, but are "
            "not the same view of it: compressing the one would change the other; make the one "
            "from the other in forward, or give it memory of its own (.clone())"
        )
    _separate(model)


def shared_names(state: Mapping[str, Tensor]) -> list[list[str]]:
    """The names in a state dict that are one and the same tensor, where there are several."""
    found: dict[object, list[str]] = {}
    for name, tensor in state.items():
        if _has_memory(tensor):
            found.setdefault(_view(tensor), []).append(name)
    return [names for names in found.values() if len(names) > 1]


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Each module and name that it has a parameter or buffer under, and their name in the model."""
    for path, module in model.named_modules():
        for own, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and _has_memory(tensor):
                yield module, own, f"{path}.{own}" if path else own


def _plain(model: nn.Module, held: dict[int, Tensor]) -> Iterator[Tensor]:
    """Tensors that modules have as mere attributes. Where hooks run before a module, they make them
    anew (torch's older spectral_norm)."""
    for module in model.modules():
        if module._forward_pre_hooks:
            continue
        for key, value in vars(module).items():
            if key in _OWN:
                continue
            values = value if isinstance(value, list | tuple) else [value]
            for each in values:
                if isinstance(each, Tensor) and _has_memory(each) and id(each) not in held:
                    yield each


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and bool(tensor.numel()) and bool(tensor.data_ptr())


def _view(tensor: Tensor) -> object:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), type(tensor)


def _overlapping(tensors: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs that have an element's memory in common; a tensor whose own elements do is a pair with
    itself."""
    for tensor in tensors:
        if 0 in [step for step, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]:
            yield tensor, tensor
    stretches = sorted(((*_stretch(tensor), at) for at, tensor in enumerate(tensors)))
    for number, (_, end, at) in enumerate(stretches):
        for begin, _, other in stretches[number + 1 :]:
            if begin >= end:
                break
            if np.intersect1d(_bytes(tensors[at]), _bytes(tensors[other])).size:
                yield tensors[at], tensors[other]


def _stretch(tensor: Tensor) -> tuple[int, int]:
    """Addresses of its first byte and past its last."""
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _bytes(tensor: Tensor) -> np.ndarray:
    """Addresses of the first bytes of its elements."""
    places = np.array([tensor.data_ptr()], dtype=np.int64)
    for extent, step in zip(tensor.shape, tensor.stride(), strict=True):
        steps = np.arange(extent, dtype=np.int64) * (step * tensor.element_size())
        places = np.unique(places[:, None] + steps)
    return places


def _said(tensor: Tensor, named: dict[int, str]) -> str:
    path = named.get(id(tensor))
    if path is None:
        return f"a tensor {list(tensor.shape)} that a module has as an attribute"
    return f"{'parameter' if isinstance(tensor, nn.Parameter) else 'buffer'} {path!r}"


def _separate(model: nn.Module) -> None:
    """Give buffers that have a part of another tensor's memory their own."""
    cloned: dict[int, Tensor] = {}
    for module, own, _ in list(_places(model)):
        tensor = getattr(module, own)
        if isinstance(tensor, nn.Parameter):
            continue
        if tensor.numel() * tensor.element_size() != tensor.untyped_storage().nbytes():
            alone = tensor.clone(memory_format=torch.contiguous_format)
            setattr(module, own, cloned.setdefault(id(tensor), alone))
