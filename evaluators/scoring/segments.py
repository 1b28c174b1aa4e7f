"""Cutting a model into segments between which a single tensor passes, so that the activations at a
cut can be kept and a candidate that differs only behind it need not run what stands before.

The model is traced with torch.fx. A node is a cut when everything computed up to it reaches the
rest through it alone. The segments call the model's own modules: a weight changed in the model is
changed in its segment."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.fx.passes.split_module import split_module

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Segments:
    """`parts[i]` takes the output of `parts[i - 1]` (the input for the first one); `where` maps a
    module's name to the first part that calls it. A model that cannot be traced is one part."""

    parts: tuple[Callable[..., Any], ...]
    where: dict[str, int]


def cut(model: nn.Module, names: list[str]) -> Segments:
    """Cut `model` (eval mode, one tensor in) into as many segments as its graph
    allows, such that each but the last begins with ... a layer of `names`. Falls back to one
    segment, and says why in the log."""
    try:
        graph = fx.symbolic_trace(model)
    except Exception as error:  # fx raises whatever the model's own code raises on a proxy
        log.warning(
            "no prefix reuse: the model cannot be traced (%s)",
            str(error).splitlines()[0] if str(error) else error,
        )
        return Segments((model,), dict.fromkeys(names, 0))
    layer_of = _layers_called(model, graph.graph, names)
    segment_of = _assign(graph.graph, set(layer_of))
    split = split_module(graph, model, lambda node: segment_of[node])
    calls = [node for node in split.graph.nodes if node.op == "call_module"]
    if any(
        len([a for a in node.args if isinstance(a, fx.Node)]) != 1 or node.kwargs for node in calls
    ):
        log.warning("no prefix reuse: a segment of the model takes more than one tensor")
        return Segments((model,), dict.fromkeys(names, 0))
    where: dict[str, int] = {}
    for node, segment in segment_of.items():
        if node in layer_of:
            where.setdefault(layer_of[node], segment)
    if missing := [name for name in names if name not in where]:
        log.warning(
            "no prefix reuse: the traced graph does not call layer %s as a module", missing[0]
        )
        return Segments((model,), dict.fromkeys(names, 0))
    return Segments(tuple(getattr(split, str(node.target)) for node in calls), where)


def _layers_called(model: nn.Module, graph: fx.Graph, names: list[str]) -> dict[fx.Node, str]:
    """Node -> the layer that it calls. A module with a tied weight counts as the layer that has
    it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    owner = {id(modules[name].weight): name for name in names}
    calls = [node for node in graph.nodes if node.op == "call_module"]
    weights = {node: id(getattr(modules[str(node.target)], "weight", None)) for node in calls}
    return {node: owner[weight] for node, weight in weights.items() if weight in owner}


def _assign(graph: fx.Graph, layers: set[fx.Node]) -> dict[fx.Node, int]:
    """Node -> segment. A segment ends at a cut node when it holds at least one layer."""
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    position = {node: i for i, node in enumerate(nodes)}
    last_use = {
        node: max((position.get(user, len(nodes)) for user in node.users), default=-1)
        for node in graph.nodes
    }
    inputs_used_until = max(
        (last_use[node] for node in graph.nodes if node.op == "placeholder"), default=-1
    )
    segment_of: dict[fx.Node, int] = {}
    segment, reach, layers_inside = 0, -1, 0
    for i, node in enumerate(nodes):
        segment_of[node] = segment
        layers_inside += node in layers
        # Nothing computed before `node` (the model's input included) is used after it: `node` alone
        # crosses.
        if reach <= i and inputs_used_until <= i and layers_inside and i < len(nodes) - 1:
            segment, layers_inside = segment + 1, 0
        reach = max(reach, last_use[node])
    return segment_of
