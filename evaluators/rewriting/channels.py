"""Removed output channels that reach nothing but the next layer: they leave that layer's inputs
too, and nothing is filled in.

A channel without weights puts out a constant, and what stands between the two layers acts on every
channel alone, so that a constant v_c reaches the next layer. One of them, v, is kept for all: with
the sum of (v_c / v) W[:, c] as its weights, the next layer's outputs are what they were, at padded
borders too."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

log = logging.getLogger(__name__)

_CONVS, _NORMS = (nn.Conv1d, nn.Conv2d), (nn.BatchNorm1d, nn.BatchNorm2d)
_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Identity,
    nn.Dropout,
)
_CALLS: dict[str, tuple[object, ...]] = {
    "call_function": (
        torch.relu,
        functional.relu,
        functional.relu6,
        functional.gelu,
        functional.silu,
        functional.hardswish,
    ),
    "call_method": ("relu", "relu_", "contiguous"),
}


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """From a layer to the only one that takes its outputs: their names, and the nodes between.
    `depthwise`: the names of the depthwise convolutions among those."""

    layer: str
    between: tuple[fx.Node, ...]
    depthwise: tuple[str, ...]
    next: str


def find_channel_groups(
    model: nn.Module, names: Collection[str], fixed: Collection[str]
) -> list[ChannelGroup]:
    """The ways through functions of single channels from one layer of `model` (eval mode) to the
    next, on which a layer of `names` lies and none that is `fixed`. Empty where the model cannot be
    traced."""
    try:
        nodes = fx.symbolic_trace(model).graph.nodes
    except Exception as error:  # fx raises whatever the model's own code raises on a proxy
        log.warning(
            "removed channels are filled in: the model cannot be traced (%s)",
            str(error).strip().split("\n")[0],
        )
        return []
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[str(node.target)]) for node in nodes if node.op == "call_module")
    owners = Counter(
        id(weight)
        for module in set(modules.values())
        if (weight := module._parameters.get("weight")) is not None
    )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    given = {id(parameters.get(str(n.target))) for n in nodes if n.op == "get_attr"}

    def free(node: fx.Node, *kinds: type[nn.Module]) -> bool:
        """Whether the node calls a module of these kinds that nothing else uses."""
        module = modules[str(node.target)] if node.op == "call_module" else None
        if not isinstance(module, kinds) or node.target in fixed:
            return False
        weight = id(module._parameters.get("weight"))
        return calls[id(module)] == 1 and owners[weight] <= 1 and weight not in given

    def passed(node: fx.Node, layer: nn.Module) -> bool:
        """Whether the node acts on every channel of the layer's outputs alone."""
        if len(node.all_input_nodes) != 1:
            return False
        if node.op == "call_module":
            module = modules[str(node.target)]
            known = (
                free(node, *_NORMS) and module.running_mean is not None
            )  # else it depends on the inputs
            # A norm behind a linear layer may act on another axis than its channels.
            own = not isinstance(layer, nn.Linear) and (
                known or (free(node, *_CONVS) and _depthwise(module))
            )
            return own or isinstance(module, _MODULES)
        return node.target in _CALLS.get(node.op, ())

    found = []
    for start in nodes:
        if not free(start, nn.Linear, *_CONVS) or not _dense(layer := modules[str(start.target)]):
            continue
        node, between = start, list[fx.Node]()
        while len(node.users) == 1:
            (node,) = node.users
            if not passed(node, layer):
                break
            between.append(node)
        kinds = (nn.Linear,) if isinstance(layer, nn.Linear) else _CONVS
        depthwise = tuple(
            str(n.target)
            for n in between
            if n.op == "call_module" and isinstance(modules[str(n.target)], _CONVS)
        )
        asked = not {str(start.target), *depthwise}.isdisjoint(names)
        if asked and node is not start and free(node, *kinds) and _dense(modules[str(node.target)]):
            found.append(
                ChannelGroup(str(start.target), tuple(between), depthwise, str(node.target))
            )
    return found


def close(model: nn.Module, group: ChannelGroup) -> None:
    """Take the channels that reach the next layer as constants out of all modules of the group,
    and out of its inputs. The model's outputs stay the same up to rounding."""
    following = model.get_submodule(group.next)
    value = _constants(model, group)
    there, own = value.isnan(), _weight(following)
    there[0] |= not there.any()  # no layer is without channels
    kept = there.nonzero().squeeze(1)
    inputs = own[:, kept]
    gone = (~there & (value != 0)).nonzero().squeeze(1)
    if len(gone):
        one = gone[value[gone].abs().argmax()]
        shares = (value[gone] / value[one]).reshape(1, -1, *[1] * (own.dim() - 2))
        inputs = torch.cat([inputs, (own[:, gone] * shares).sum(1, keepdim=True)], 1)
        kept = torch.cat([kept, one[None]])
    through = [str(node.target) for node in group.between if node.op == "call_module"]
    for name in (group.layer, *through):
        module = model.get_submodule(name)
        if not isinstance(module, _MODULES):
            model.set_submodule(name, _sliced(module, kept))
    made = copy.deepcopy(following)
    made.weight = nn.Parameter(inputs, requires_grad=False)
    setattr(made, "in_features" if isinstance(made, nn.Linear) else "in_channels", len(kept))
    model.set_submodule(group.next, made)


def _constants(model: nn.Module, group: ChannelGroup) -> Tensor:
    """What each channel holds wherever the next layer takes it, [channels]; NaN in those that are
    not constant."""
    layer = model.get_submodule(group.layer)
    weight = _weight(layer)
    value = torch.where(weight.flatten(1).ne(0).any(1), torch.nan, _bias(layer)).reshape(
        1, -1, *[1] * (weight.dim() - 2)
    )
    with torch.no_grad():
        for node in group.between:
            if node.target in group.depthwise:
                module = model.get_submodule(str(node.target))
                silent = _weight(module).flatten(1).eq(0).all(1)
                constant = silent | (
                    value.flatten() == 0
                )  # another constant is padded with zeros, and constant no more
                value = torch.where(constant, _bias(module), torch.nan).reshape(value.shape)
            else:
                value = _run(node, model, value)
    return value.flatten()


def _dense(module: nn.Module) -> bool:
    """Whether every output of the layer takes every input."""
    return isinstance(module, nn.Linear) or (isinstance(module, _CONVS) and module.groups == 1)


def _depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, _CONVS)
        and 1 < module.groups == module.in_channels == module.out_channels
    )


def _run(node: fx.Node, model: nn.Module, value: Tensor) -> Tensor:
    rest: tuple[Any, ...] = node.args[1:]
    if node.op == "call_module":
        result = model.get_submodule(str(node.target))(value)
    elif node.op == "call_function":
        result = node.target(value, *rest, **node.kwargs)  # type: ignore[operator]
    else:
        result = getattr(value, str(node.target))(*rest, **node.kwargs)
    assert isinstance(result, Tensor)
    return result


def _sliced(module: nn.Module, kept: Tensor) -> nn.Module:
    """A copy with the channels `kept` alone: a layer's outputs; of a norm or a depthwise
    convolution, the inputs too."""
    made = copy.deepcopy(module)
    for name, parameter in module.named_parameters(recurse=False):
        setattr(made, name, nn.Parameter(parameter.detach()[kept], requires_grad=False))
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.dim():
            setattr(made, name, buffer[kept])
    counts = [
        "out_channels",
        "out_features",
        "num_features",
        *(["in_channels", "groups"] if _depthwise(module) else []),
    ]
    for name in counts:
        if hasattr(made, name):
            setattr(made, name, len(kept))
    return made


def _bias(module: nn.Module) -> Tensor:
    bias = module.bias
    return (
        bias.detach()
        if isinstance(bias, Tensor)
        else _weight(module).new_zeros(len(_weight(module)))
    )


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight.detach()
