"""ONNX models of newer operator sets, in the words of the newest one that onnx2torch knows.
Most operators differ in nothing but the types they may take; whoever uses the result compares
outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

NEWEST = 17
"""Operator set."""
_STANDARD = ("", "ai.onnx")


def lowered(proto: Any, numpy_helper: Any) -> Any:
    """`proto`, changed in place where its operator set is newer.

    Args:
        proto: an onnx.ModelProto.
        numpy_helper: onnx's module of that name.
    """
    sets = [one for one in proto.opset_import if one.domain in _STANDARD]
    if all(one.version <= NEWEST for one in sets):
        return proto
    graph, constants = proto.graph, dict(_constants(proto.graph))
    for node in graph.node:
        if node.op_type == "Split":
            _drop(node, "num_outputs")
        elif node.op_type == "Reshape":
            _drop(node, "allowzero")  # means something only where a shape holds 0
        elif node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
            axes = constants.get(node.input[1]) if len(node.input) > 1 else None
            if axes is not None:
                attribute = node.attribute.add()
                attribute.name, attribute.type = "axes", attribute.INTS
                attribute.ints.extend(numpy_helper.to_array(axes).ravel().tolist())
                del node.input[1:]
            _drop(node, "noop_with_empty_axes")
    for one in sets:
        one.version = NEWEST
    return proto


def _constants(graph: Any) -> Iterator[tuple[str, Any]]:
    """Names of values that are in the file, and their onnx.TensorProto."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            yield node.output[0], node.attribute[0].t


def _drop(node: Any, name: str) -> None:
    for at, attribute in reversed(list(enumerate(node.attribute))):
        if attribute.name == name:
            del node.attribute[at]
