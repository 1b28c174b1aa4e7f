"""Cutting a model into segments between which a single tensor passes, so that the activations at a
cut can be kept and a candidate that differs only behind it need not run what stands before.

The model is traced with torch.fx. A node is a cut when everything computed up to it reaches the
rest through it alone. The segments call the model's own modules: a weight changed in the model is
changed in its segment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module

from apportion.compressors.errors import first_line
from apportion.evaluators.data.dataset import Batch
from apportion.evaluators.scoring.cuts import Cuts, Keep
from apportion.evaluators.tasks.task import Outputs


class Segments(Cuts):
    """`parts[i]` takes the output of `parts[i - 1]`, the first one what `inputs` gives of a
    batch."""

    def __init__(
        self,
        parts: tuple[Callable[..., Any], ...],
        where: Mapping[str, int],
        inputs: Callable[[Batch], Any],
    ) -> None:
        self.parts, self.where, self.count = parts, where, len(parts)
        self._inputs = inputs

    def run(self, batch: Batch, start: int, begin: Any, keep: Keep) -> Outputs:
        x = begin if start else self._inputs(batch)
        for i in range(start, self.count):
            if i > start:
                keep(i, x)
            x = self.parts[i](x)
        return x


class UntraceableError(Exception):
    """A model cannot be cut by its graph."""


def cut(
    model: nn.Module, layers: Mapping[str, Sequence[Tensor]], inputs: Callable[[Batch], Any]
) -> Segments:
    """Cut `model` (eval mode; `inputs` gives the one tensor that it takes of a batch) into as many
    segments as its graph allows, such that each but the last holds one of the `layers`, given by
    name with the parameters that hold their weights. Raises UntraceableError."""
    try:
        graph = fx.symbolic_trace(model)
    except Exception as error:  # fx raises whatever the model's own code raises on a proxy
        raise UntraceableError(f"it cannot be traced ({first_line(error)})") from error
    layers_of = _layers_used(model, graph.graph, layers)
    segment_of = _assign(graph.graph, set(layers_of))
    split = split_module(graph, model, lambda node: segment_of[node])
    calls = [node for node in split.graph.nodes if node.op == "call_module"]
    if any(
        len([a for a in node.args if isinstance(a, fx.Node)]) != 1 or node.kwargs for node in calls
    ):
        raise UntraceableError("a segment of it takes more than one tensor")
    where: dict[str, int] = {}
    for node, segment in segment_of.items():
        for name in layers_of.get(node, ()):
            where.setdefault(name, segment)
    if missing := [name for name in layers if name not in where]:
        raise UntraceableError(f"its graph does not use layer {missing[0]}")
    return Segments(tuple(getattr(split, str(node.target)) for node in calls), where, inputs)


def _layers_used(
    model: nn.Module, graph: fx.Graph, layers: Mapping[str, Sequence[Tensor]]
) -> dict[fx.Node, list[str]]:
    """Node -> the layers that it uses: those whose weights the module that it calls has (a module
    that the trace does not enter, as attention, with all inside it), or is given."""
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    owners: dict[int, list[str]] = {}
    for name, own in layers.items():
        for parameter in own:
            owners.setdefault(id(parameter), []).append(name)
    used: dict[fx.Node, list[str]] = {}
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            held = [name for p in modules[target].parameters() for name in owners.get(id(p), ())]
            users = [node] if held else []
        elif node.op == "get_attr":
            held = owners.get(id(parameters.get(target)), [])
            users = [*node.users] if held else []
        else:
            continue
        for user in users:
            used.setdefault(user, []).extend(held)
    return used


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
