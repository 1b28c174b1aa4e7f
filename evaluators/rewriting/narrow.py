"""Physically smaller models: channels taken out of all parameters that they lie in.

What is left of a model is said by the shapes of its parameters and buffers
(evaluators/models/resizing.py)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apportion.compressors.groups.find import ChannelGroup
from apportion.compressors.groups.readers import Kept
from apportion.evaluators.models.resizing import resize


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
