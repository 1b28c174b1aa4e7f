"""What onnx2torch made of an ONNX model, without the arithmetic on shapes that ONNX does in
tensors: for inputs of one shape, in batches of any size. torch.export and torch.fx cannot follow
that arithmetic, and files for a batch of one have its size as a constant.

The graph runs twice, on batches of two sizes. What is computed from constants and shapes alone is
then known, and what differs between the runs is the batch's size. Operations that take such values
become plain torch with numbers in their place (onnx_operations.py)."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from apportion.evaluators.data import trees
from apportion.evaluators.models.onnx_operations import SIZES, Pair, static

_SHAPE = "OnnxShape"


def make_static(model: fx.GraphModule, inputs: Any) -> fx.GraphModule:
    """The same model for inputs of this shape [n, ...].

    Args:
        model: what onnx2torch made; shares its layers with the result.
        inputs: what it is called with, for some samples.

    Raises:
        ValueError, and whatever the model's operations raise: it does not run on them.
    """
    return _Maker(model, inputs).made()


class _Maker:
    """values: of each node in both runs, for as long as it is needed; known: nodes that depend on
    nothing but constants and shapes; new: the nodes of the graph that is made."""

    def __init__(self, model: fx.GraphModule, inputs: Any) -> None:
        self._model = model
        self._inputs = inputs
        self._graph = fx.Graph()
        self._roots: dict[str, Any] = {}
        self._values: dict[fx.Node, Pair] = {}
        self._known: set[fx.Node] = set()
        self._new: dict[fx.Node, fx.Node] = {}

    def made(self) -> fx.GraphModule:
        order = iter(trees.tensors(self._inputs))
        last = _last_uses(self._model.graph)
        with torch.no_grad():
            for node in self._model.graph.nodes:
                if node.op == "placeholder":
                    named = isinstance(self._inputs, dict)
                    given = self._inputs[node.name] if named else next(order)
                    self._values[node] = _resized(given)
                    self._new[node] = self._graph.placeholder(node.name)
                elif node.op == "output":
                    self._graph.output(fx.node.map_arg(node.args[0], self._place))
                else:
                    self._operation(node)
                for done in last.get(node, ()):
                    if done not in self._known:
                        del self._values[done]
        return fx.GraphModule(self._roots, self._graph).eval()

    def _operation(self, node: fx.Node) -> None:
        if self._is_known(node):
            self._known.add(node)
            self._values[node] = self._run(node, 0), self._run(node, 1)
            return
        found = self._static(node)
        if found is None:
            self._values[node] = self._run(node, 0), self._run(node, 1)
            args: Any = fx.node.map_arg(node.args, self._place)
            kwargs: Any = fx.node.map_arg(node.kwargs, self._place)
            if node.op == "call_module":
                self._roots[str(node.target)] = self._module(node)
            self._new[node] = self._graph.create_node(node.op, node.target, args, kwargs)
            return
        first = next(each for each in node.all_input_nodes if each not in self._known)
        function, rest = found
        if isinstance(function, nn.Module):
            self._roots[str(node.target)] = function.eval()
            self._new[node] = self._graph.call_module(str(node.target), (self._place(first),))
        else:
            self._new[node] = self._graph.call_function(function, (self._place(first), *rest))
        one, other = self._values[first]
        self._values[node] = function(one, *rest), function(other, *rest)

    def _is_known(self, node: fx.Node) -> bool:
        if node.op == "call_module" and type(self._module(node)).__name__ == _SHAPE:
            return True
        return all(each in self._known for each in node.all_input_nodes)

    def _module(self, node: fx.Node) -> nn.Module:
        return self._model.get_submodule(str(node.target))

    def _run(self, node: fx.Node, at: int) -> Any:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self._model)

        def value(other: fx.Node) -> Any:
            return self._values[other][at]

        args: Any = fx.node.map_arg(node.args, value)
        kwargs: Any = fx.node.map_arg(node.kwargs, value)
        function: Any = self._module(node) if node.op == "call_module" else node.target
        return function(*args, **kwargs)

    def _place(self, node: fx.Node) -> fx.Node:
        """The node in the new graph, where a known value that is needed as a tensor is a buffer."""
        if node not in self._new:
            one, other = self._values[node]
            if not torch.equal(one, other):
                raise ValueError(f"{node.name} depends on the batch size in a way not known here")
            name = f"constants.{node.name}"
            self._roots[name] = one
            self._new[node] = self._graph.get_attr(name)
        return self._new[node]

    def _static(self, node: fx.Node) -> Any:
        """What to call instead, and with what behind the one input that is not known; None for what
        stays as it is."""
        unknown = [each for each in node.all_input_nodes if each not in self._known]
        if node.op != "call_module" or len(unknown) != 1:
            return None
        module = self._module(node)
        bound = inspect.signature(module.forward).bind(*node.args, **node.kwargs).arguments
        told = {name: self._values[v] for name, v in bound.items() if isinstance(v, fx.Node)}
        at = next(name for name, value in bound.items() if value is unknown[0])
        return static(module, at, told)


def _resized(x: Tensor) -> Pair:
    """Batches of two sizes, of the samples that there are."""
    one, other = (x[torch.arange(size) % len(x)] for size in SIZES)
    return one, other


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Node -> the nodes whose values nothing behind it needs."""
    last = {each: node for node in graph.nodes for each in node.all_input_nodes}
    found: dict[fx.Node, list[fx.Node]] = {}
    for each, node in last.items():
        found.setdefault(node, []).append(each)
    return found
