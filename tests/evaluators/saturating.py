"""What a file's products would be on a processor with AVX2 and without VNNI, worked out from its
integers: a test that holds on every machine, whatever instructions it has.

ONNX Runtime's kernels there multiply uint8 inputs by int8 weights with vpmaddubsw, which adds the
products of two neighbours along the reduction in 16 bits and saturates, and by uint8 weights with
vpmaddwd on widened operands, which is exact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from apportion.evaluators.rewriting import onnx_model

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Product:
    """A layer's sums of products of codes, [rows, outputs]: `exact`, and as that processor has
    them."""

    layer: str
    exact: Ints
    there: Ints


def vpmaddubsw(inputs: Ints, weight: Ints) -> Ints:
    """[rows, k] times [outputs, k]: the products of each two neighbours along k are added and cut
    to 16 bits, then summed."""
    odd = inputs.shape[1] % 2
    inputs, weight = np.pad(inputs, ((0, 0), (0, odd))), np.pad(weight, ((0, 0), (0, odd)))
    first = inputs[:, None, 0::2] * weight[None, :, 0::2]
    second = inputs[:, None, 1::2] * weight[None, :, 1::2]
    return np.clip(first + second, -(2**15), 2**15 - 1).sum(2)


def products(proto: Any, inputs: Tensor) -> Iterator[Product]:
    """Of every layer of the file whose input and weight are quantized, for `inputs` [n, ...]."""
    codes = _codes(proto, inputs)
    made = {node.output[0]: node for node in proto.graph.node}
    constants = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        source, weight = made.get(node.input[0]), made.get(node.input[1])
        flip = node.op_type == "MatMul"
        if weight is not None and weight.op_type == "Transpose":
            weight, flip = made[weight.input[0]], not flip
        if node.op_type == "Gemm":
            flip = flip == any(one.name == "transB" and one.i for one in node.attribute)
        if source is None or weight is None or source.input[0] not in codes:
            continue
        if not source.op_type == weight.op_type == "DequantizeLinear":
            continue
        stored = constants[weight.input[0]]
        kernel = vpmaddubsw if stored.dtype == np.int8 else _exact
        for left, right in _matrices(node, codes[source.input[0]], stored, flip):
            yield Product(weight.input[0], _exact(left, right), kernel(left, right))


def _exact(inputs: Ints, weight: Ints) -> Ints:
    return inputs @ weight.T


def _codes(proto: Any, inputs: Tensor) -> dict[str, Any]:
    """What each QuantizeLinear gives, by name."""
    opened = onnx.ModelProto()
    opened.CopyFrom(proto)
    names = [node.output[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    opened.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in names
    )
    run = onnx_model.session(opened, 1)
    return dict(zip(names, run.run(names, {run.get_inputs()[0].name: inputs.numpy()}), strict=True))


def _matrices(node: Any, inputs: Any, weight: Any, flip: bool) -> Iterator[tuple[Ints, Ints]]:
    """[rows, k] and [outputs, k] of the product, one pair for each group of a convolution, along k
    as the kernels go: place by place, and there channel by channel."""
    if node.op_type != "Conv":
        weight = weight.T if flip else weight
        yield inputs.reshape(-1, weight.shape[1]).astype(np.int64), weight.astype(np.int64)
        return
    said = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    pads, groups = said.get("pads", [0, 0, 0, 0]), said.get("group", 1)
    assert pads[:2] == pads[2:], "padded the same on both sides"
    patches = torch.nn.functional.unfold(
        torch.from_numpy(inputs).double(),
        weight.shape[2:],
        said.get("dilations", 1),
        pads[:2],
        said.get("strides", 1),
    )
    places = weight.shape[2] * weight.shape[3]
    for one, rows in zip(patches.chunk(groups, 1), np.split(weight, groups), strict=True):
        left = one.unflatten(1, (-1, places)).permute(0, 3, 2, 1).flatten(2).flatten(0, 1)
        yield (
            left.numpy().astype(np.int64),
            rows.transpose(0, 2, 3, 1).reshape(len(rows), -1).astype(np.int64),
        )
