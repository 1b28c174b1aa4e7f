"""Models as ONNX: quantized layers as DequantizeLinear of their codes, with a QuantizeLinear / DequantizeLinear pair before the
layers whose inputs are quantized, so that ONNX Runtime and TensorRT run them in integers.

Needs onnx and onnxscript; running needs onnxruntime (the extra `onnx`).
"""

from __future__ import annotations

import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from compressors.activations import ActivationGrid, quantize_input
from compressors.errors import ConfigurationError, ModelError
from compressors.grids import Grid

log = logging.getLogger(__name__)
_CODES = ".weight_codes"


@dataclass(frozen=True, slots=True)
class Quantized:
    """What ONNX needs to know of a layer besides its float weight: the grids of its weight and of its input."""

    weight: Grid | None = None
    activation: ActivationGrid | None = None


def to_onnx(model: nn.Module, example: Tensor, quantized: Mapping[str, Quantized], output: ActivationGrid | None = None) -> Any:
    """An onnx.ModelProto of `model` (eval mode, one tensor in and out, the batch dynamic), whose layers `quantized` names (by
    module name) are quantized. Their weights must lie on the grids given. `output`: quantizes the outputs too. Raises
    ModelError for a model that torch.onnx cannot export or a layer that is not found in the graph, ConfigurationError where
    onnx is missing."""
    onnx = _import("onnx")
    _import("onnxscript")
    plain = copy.deepcopy(model).eval()
    for module in plain.modules():
        quantize_input(module, None)
    plain, quantized = _folded(plain, quantized)
    proto = _exported(plain, example)
    graph = _Graph(onnx, proto.graph)
    weights = dict(plain.named_parameters())
    for name, what in quantized.items():
        if what.activation is not None and what.activation.bits > 8:
            raise ModelError(f"layer {name!r}: ONNX's QuantizeLinear takes up to 8 bits, its input has {what.activation.bits}")
        nodes = graph.users(f"{name}.weight")
        if not nodes:
            raise ModelError(f"layer {name!r}: its weight is not an input of the exported graph")
        if what.activation is not None:
            for node in nodes:
                graph.quantize_input(node, what.activation)
        if what.weight is not None:
            graph.quantize_weight(f"{name}.weight", weights[f"{name}.weight"].detach(), what.weight)
    if output is not None:
        graph.quantize_output(output)
    graph.finish()
    onnx.checker.check_model(proto, full_check=True)
    return proto


def session(proto: Any, threads: int) -> Any:
    """An onnxruntime.InferenceSession on the CPU."""
    options = _import("onnxruntime").SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return _import("onnxruntime").InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def in_integers(proto: Any) -> set[str]:
    """The layers whose products ONNX Runtime does in integers when it runs `proto`: those whose codes reach a quantized
    operator. It has them for layers whose outputs are quantized next, and turns the others back into floats."""
    onnx, runtime = _import("onnx"), _import("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = f"{folder}/optimized.onnx", 3
        runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    used = {value for node in graph.node if node.op_type not in ("DequantizeLinear", "Transpose") for value in node.input}
    return {value.removesuffix(_CODES) for value in used if value.endswith(_CODES)}


def run(opened: Any, inputs: Tensor) -> Tensor:
    """The outputs for `inputs` [n, ...]."""
    outputs = opened.run(None, {opened.get_inputs()[0].name: inputs.numpy()})
    return torch.from_numpy(outputs[0])


def version() -> str:
    """Of ONNX Runtime."""
    return str(_import("onnxruntime").__version__)


def _import(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise ConfigurationError(f"ONNX models need the package {name}: install apportion[onnx]") from error


def stretched(grid: Grid, old: Tensor, new: Tensor) -> Grid:
    """The grid of weights `new`, whose rows are those of `old` on `grid`, each times a number of its own. Rows that are turned
    over have their codes mirrored."""
    if torch.equal(old, new):
        return grid
    old, new = old.flatten(1), new.flatten(1)
    factor = (old * new).sum(1, keepdim=True) / (old**2).sum(1, keepdim=True).clamp(min=1e-30)
    factor = torch.where(factor == 0, 1.0, factor)
    zero = torch.where(factor < 0, 2**grid.bits - 1 - grid.zero, grid.zero)
    return Grid(grid.scale * factor.abs(), zero, grid.bits)


def _folded(model: nn.Module, quantized: Mapping[str, Quantized]) -> tuple[nn.Module, dict[str, Quantized]]:
    """Batch-norm folded into the convolutions before it, without which no runtime can keep them in integers. It stretches rows
    of weights, so that the grids stretch along: a row turned over has its codes mirrored."""
    before = {name: parameter.detach() for name, parameter in model.named_parameters()}
    try:
        folded = fuse(model)
    except Exception as error:  # a model that fx cannot trace keeps its batch-norm
        log.warning("batch-norm is not folded: the model cannot be traced (%s)", str(error).strip().splitlines()[0])
        return model, dict(quantized)
    after = dict(folded.named_parameters())
    made = {}
    for name, what in quantized.items():
        grid = what.weight
        if grid is not None:
            grid = stretched(grid, before[f"{name}.weight"], after[f"{name}.weight"].detach())
        made[name] = Quantized(grid, what.activation)
    return folded, made


def _exported(model: nn.Module, example: Tensor) -> Any:
    sizes = ({0: torch.export.Dim("batch")},)
    inputs = example if len(example) > 1 else torch.cat([example, example])  # a batch of one would be taken for a constant
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(model, (inputs,), dynamo=True, optimize=True, verbose=False, dynamic_shapes=sizes)
    except Exception as error:  # whatever the model's own code, torch.export or the exporter raise
        raise ModelError(f"torch.onnx cannot export the model: {str(error).strip().splitlines()[0]}") from error
    finally:
        logging.disable(before)
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces, with paths of this machine
    return proto


_START, _END = object(), object()


class _Graph:
    """Edits of one onnx graph."""

    def __init__(self, onnx: Any, graph: Any) -> None:
        self._onnx, self._graph = onnx, graph
        self._made: list[tuple[Any, Any]] = []  # (node, the node that it stands before, or _START or _END)

    def users(self, value: str) -> list[Any]:
        return [
            node for node in self._graph.node if value in node.input and node.op_type in ("Conv", "Gemm", "MatMul", "Transpose")
        ]

    def quantize_input(self, node: Any, grid: ActivationGrid) -> None:
        source = node.input[0]
        node.input[0] = self._on_grid(source, f"{source}_for_{node.name or node.output[0]}", grid, node)

    def quantize_output(self, grid: ActivationGrid) -> None:
        last = self._graph.node[-1]
        result = last.output[0]
        last.output[0] = f"{result}_full"
        self._rename(self._on_grid(last.output[0], result, grid, _END), result)

    def _on_grid(self, source: str, name: str, grid: ActivationGrid, node: Any) -> str:
        scale = self._constant(f"{name}_scale", np.array(grid.scale, np.float32))
        zero = self._constant(f"{name}_zero", np.array(grid.zero, np.uint8))
        top = 2**grid.bits - 1
        inner = source
        if grid.bits < 8:  # the grid of fewer bits: what lies beyond its codes is clipped first
            low, high = (np.array(grid.scale * (code - grid.zero), np.float32) for code in (0, top))
            inner = f"{name}_clipped"
            bounds = [self._constant(f"{name}_low", low), self._constant(f"{name}_high", high)]
            self._before(node, "Clip", [source, *bounds], inner)
        self._before(node, "QuantizeLinear", [inner, scale, zero], f"{name}_codes")
        self._before(node, "DequantizeLinear", [f"{name}_codes", scale, zero], f"{name}_dequantized")
        return f"{name}_dequantized"

    def _rename(self, old: str, new: str) -> None:
        for node, _ in self._made:
            node.output[:] = [new if value == old else value for value in node.output]

    def quantize_weight(self, name: str, weight: Tensor, grid: Grid) -> None:
        """Replace the initializer `name` by codes and a DequantizeLinear that gives `name`. Codes of symmetric grids are moved
        to int8 about 0, which TensorRT needs."""
        codes = grid.codes(weight.reshape(len(weight), -1))
        if not torch.allclose(grid.values(codes).reshape(weight.shape), weight, rtol=1e-4, atol=1e-7):
            raise ModelError(f"{name}: the weights do not lie on their grid")
        symmetric = bool((grid.zero == 2 ** (grid.bits - 1)).all())
        kind, offset = (np.int8, grid.zero[:1]) if symmetric else (np.uint8, torch.zeros(1))
        stored = (codes - offset).reshape(weight.shape).numpy().astype(kind)
        per_row = len(grid.scale) > 1
        shape = (-1,) if per_row else ()
        scale = self._constant(f"{name}_scale", grid.scale.numpy().reshape(shape).astype(np.float32))
        zero = self._constant(f"{name}_zero", (grid.zero - offset).numpy().reshape(shape).astype(kind))
        for initializer in [i for i in self._graph.initializer if i.name == name]:
            self._graph.initializer.remove(initializer)
        axis = {"axis": 0} if per_row else {}
        self._before(
            _START, "DequantizeLinear", [self._constant(name.removesuffix(".weight") + _CODES, stored), scale, zero], name, **axis
        )

    def finish(self) -> None:
        """Put the new nodes where they belong."""
        nodes = [new for new, place in self._made if place is _START]
        for node in self._graph.node:
            nodes += [new for new, place in self._made if place is node]
            nodes.append(node)
        nodes += [new for new, place in self._made if place is _END]
        copies = [self._onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self._graph.node[:]
        self._graph.node.extend(copies)

    def _before(self, place: Any, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self._made.append((self._onnx.helper.make_node(kind, inputs, [output], name=f"{output}_{kind}", **attributes), place))

    def _constant(self, name: str, value: np.ndarray) -> str:
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(value, name))
        return name
