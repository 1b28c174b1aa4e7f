"""Physically smaller models: channels taken out of all parameters that they lie in.

What is left of a model is said by the shapes of its parameters and buffers: `resize` gives them to
a model of the user's own class, whose state dict is then loaded as any other."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from apportion.compressors.errors import ModelError
from apportion.compressors.groups.find import ChannelGroup

Kept = Mapping[str, np.ndarray]
"""Group -> bool [its channels], which stay."""
Shapes = Mapping[str, Sequence[int]]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_COUNTS = (
    *("num_heads", "num_attention_heads", "num_key_value_heads", "num_kv_heads", "n_heads"),
    *("n_head", "n_kv_heads", "num_attn_heads", "nhead", "all_head_size", "attn_dim", "split_size"),
)
"""Attributes of modules that own an attention's projections, and that fall with its heads."""
_PROJECTION = re.compile(
    r"(to_?|w_?|c_)?(q|k|v|qkv|kv|query|key|value|query_key_value|attn|in_proj)(_?(proj|lin|linear))?",
    re.IGNORECASE,
)
"""Names of such projections."""
_LISTS = (nn.ParameterList, nn.ParameterDict)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def narrowed(model: nn.Module, groups: Sequence[ChannelGroup], kept: Kept) -> nn.Module:
    """A copy of `model` without the channels that are not kept. Raises ModelError for a module
    whose size is not known to follow its parameters."""
    state = copy.copy(model.state_dict())  # with the versions of its modules
    hidden = {n: v for n, v in model.named_buffers() if n not in state}  # no part of the state
    state.update(hidden)
    for (name, dim), stays in _slices(groups, kept).items():
        own = state[name]
        state[name] = own.index_select(dim, torch.from_numpy(stays.nonzero()[0]).to(own.device))
    for names in _shared(model, state):
        known = next((state[n] for n in names if state[n].shape != _value(model, n).shape), None)
        if known is not None:
            state.update(dict.fromkeys(names, known))
    made = copy.deepcopy(model)
    resize(made, {name: v.shape for name, v in state.items() if isinstance(v, Tensor)})
    for name in hidden:
        _value(made, name).copy_(state.pop(name))
    made.load_state_dict(state)
    return made


def changed_shapes(model: nn.Module, narrow: nn.Module) -> dict[str, list[int]]:
    """What `resize` needs to make a model of this class as small as `narrow`."""
    before, after = ({**dict(own.named_buffers()), **own.state_dict()} for own in (model, narrow))
    return {
        name: list(value.shape)
        for name, value in after.items()
        if isinstance(value, Tensor) and value.shape != before[name].shape
    }


def resize(model: nn.Module, shapes: Shapes) -> None:
    """Give parameters and buffers of `model` other shapes, and its modules the sizes that go with
    them; the values are to be loaded afterwards. Raises ModelError for a name that the model lacks,
    and for a module that cannot be resized."""
    changed: dict[str, None] = {}
    made: dict[int, nn.Parameter] = {}
    for name, shape in shapes.items():
        path, _, attribute = name.rpartition(".")
        try:
            module = model.get_submodule(path)
            value = getattr(module, attribute)
        except AttributeError:
            raise ModelError(f"shapes: the model has no parameter or buffer {name!r}") from None
        if list(value.shape) == list(shape):
            continue
        changed[path] = None
        if isinstance(value, nn.Parameter):
            if id(value) not in made:
                made[id(value)] = nn.Parameter(
                    value.detach().new_empty(tuple(shape)), requires_grad=value.requires_grad
                )
            setattr(module, attribute, made[id(value)])
        else:
            setattr(module, attribute, value.new_empty(tuple(shape)))
    widths: dict[str, set[tuple[int, int]]] = {}
    for path in changed:
        module = model.get_submodule(path)
        before = _width(module)
        _fit(path, module)
        owner, _, name = path.rpartition(".")
        if (after := _width(module)) != before and _PROJECTION.fullmatch(name):
            widths.setdefault(owner, set()).add((after, before))
    for path, own in widths.items():
        _count(model.get_submodule(path), own)


def _fit(path: str, module: Any) -> None:
    """The sizes that a module keeps beside its parameters."""
    if isinstance(module, _CONVS):
        if module.groups > 1 and module.weight.shape[1] == 1 == module.in_channels // module.groups:
            each = module.out_channels // module.groups
            module.groups = module.weight.shape[0] // each
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, _TRANSPOSED):
        if module.groups > 1 and module.groups == module.in_channels:
            module.groups = module.weight.shape[0]
        module.in_channels = module.weight.shape[0]
        module.out_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        sized = module.weight if module.weight is not None else module.running_mean
        module.num_features = len(sized)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        module.nx, module.nf = module.weight.shape
    elif type(module).__module__.startswith("torch.nn.") and not isinstance(module, _LISTS):
        raise ModelError(f"{path}: a {type(module).__name__} cannot be made smaller")


def _width(module: Any) -> int:
    """How many channels it makes, as it says itself; 0: it does not."""
    made = getattr(module, "out_features", getattr(module, "nf", 0))
    return made if isinstance(made, int) else 0


def _count(module: nn.Module, widths: set[tuple[int, int]]) -> None:
    """The numbers of heads that the module of an attention keeps, which fall as the widths of its
    projections do: (after, before)."""
    shares = {Fraction(*each) for each in widths}
    if len(shares) != 1:
        return  # they do not fall together
    (share,) = shares
    for name in _COUNTS:
        value = getattr(module, name, None)
        if type(value) is int and (value * share).denominator == 1:
            setattr(module, name, int(value * share))


def _slices(groups: Sequence[ChannelGroup], kept: Kept) -> dict[tuple[str, int], np.ndarray]:
    """(Parameter or buffer, dimension) -> bool [its size], what stays."""
    made: dict[tuple[str, int], np.ndarray] = {}
    for group in groups:
        if group.name not in kept or kept[group.name].all():
            continue
        for own in group.slices:
            stays = made.setdefault((own.name, own.dim), np.ones(len(own.channel), bool))
            stays &= (own.channel < 0) | kept[group.name][own.channel]
    return made


def _shared(model: nn.Module, known: Mapping[str, Any]) -> list[list[str]]:
    """Names of one parameter or buffer."""
    names: dict[int, list[str]] = {}
    for name, value in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        names.setdefault(id(value), []).append(name)
    return [own for each in names.values() if len(own := [n for n in each if n in known]) > 1]


def _value(model: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    value: Tensor = getattr(model.get_submodule(path), attribute)
    return value
