"""Models as ONNX: quantized layers as DequantizeLinear of their codes, with a QuantizeLinear /
DequantizeLinear pair before the layers whose inputs are quantized, so that ONNX Runtime runs them
in integers, to the same result on every processor.

Needs onnx and onnxscript; running needs onnxruntime (the extra `onnx`).
"""

from __future__ import annotations

import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Collection, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrize

from apportion.compressors.activations import ActivationGrid, quantize_input
from apportion.compressors.errors import ConfigurationError, ModelError
from apportion.compressors.grids import Grid
from apportion.compressors.kinds.feeding import with_first
from apportion.evaluators.rewriting.processor import may_be_signed
from apportion.evaluators.rewriting.reduced import reduce_layers

log = logging.getLogger(__name__)
_CODES = ".parametrizations.weight.original"
"""What torch calls the codes of a layer whose weight is made from them."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """What ONNX needs to know of a layer besides its float weight: the grids of its weight and of
    its input."""

    weight: Grid | None = None
    activation: ActivationGrid | None = None


def to_onnx(
    model: nn.Module,
    example: Tensor,
    quantized: Mapping[str, Quantized],
    reduced: Collection[str] = (),
    output: ActivationGrid | None = None,
) -> Any:
    """An onnx.ModelProto of `model` (eval mode, one tensor in and out, the batch dynamic), whose
    layers `quantized` names (by module name) are quantized. Their weights must lie on the grids
    given. The layers `reduced`, which are not quantized, come in the shapes that are left of them
    (evaluators/rewriting/reduced.py). `output`: quantizes the outputs too. Raises ModelError for a
    model that torch.onnx cannot export or a layer that it does not have, ConfigurationError where
    onnx is missing."""
    onnx = _import("onnx")
    _import("onnxscript")
    plain = copy.deepcopy(model).eval().requires_grad_(False)
    for module in plain.modules():
        quantize_input(module, None)
    plain, quantized = _folded(plain, _once(plain, quantized))
    modules = dict(plain.named_modules(remove_duplicate=False))
    reduce_layers(
        plain, [name for name in reduced if name in modules], quantized
    )  # traced, shared layers have one name
    modules = dict(plain.named_modules(remove_duplicate=False))
    codes: dict[
        tuple[int, bool], Tensor
    ] = {}  # of each weight that layers share, by its address and whether it is signed
    for name, what in quantized.items():
        if what.activation is not None:
            pair = _InputPair(what.activation)
            modules[name].register_forward_pre_hook(pair, with_kwargs=True)
        if what.weight is not None:
            _make_from_codes(
                name, modules[name], what.weight, may_be_signed(what.weight, what.activation), codes
            )
    if output is not None:
        plain = nn.Sequential(plain, _Pair(output))
    proto = _exported(plain, example)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def session(proto: Any, threads: int) -> Any:
    """An onnxruntime.InferenceSession on the CPU, of an onnx.ModelProto or its bytes."""
    options = _import("onnxruntime").SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    content = proto if isinstance(proto, bytes) else proto.SerializeToString()
    return _import("onnxruntime").InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )


def in_integers(proto: Any) -> set[str]:
    """The layers whose products ONNX Runtime does in integers when it runs `proto`: those whose
    codes reach a quantized operator. It has them for layers whose outputs are quantized next, and
    turns the others back into floats."""
    onnx, runtime = _import("onnx"), _import("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = f"{folder}/optimized.onnx", 3
        runtime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        graph = onnx.load(options.optimized_model_filepath).graph
    used = {
        value
        for node in graph.node
        if node.op_type not in ("DequantizeLinear", "Transpose")
        for value in node.input
    }
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
        raise ConfigurationError(
            f"ONNX models need the package {name}: install apportion[onnx]"
        ) from error


def stretched(grid: Grid, old: Tensor, new: Tensor) -> Grid:
    """The grid of weights `new`, whose rows are those of `old` on `grid`, each times a number of
    its own. Rows that are turned over have their codes mirrored."""
    if torch.equal(old, new):
        return grid
    old, new = old.flatten(1), new.flatten(1)
    factor = (old * new).sum(1, keepdim=True) / (old**2).sum(1, keepdim=True).clamp(min=1e-30)
    factor = torch.where(factor == 0, 1.0, factor)
    zero = torch.where(factor < 0, 2**grid.bits - 1 - grid.zero, grid.zero)
    return Grid(grid.scale * factor.abs(), zero, grid.bits)


def _once(model: nn.Module, quantized: Mapping[str, Quantized]) -> dict[str, Quantized]:
    """`quantized` with each module under its first name, after a check of names and bits."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first = {id(module): name for name, module in model.named_modules()}
    found = {}
    for name, what in quantized.items():
        if name not in modules:
            raise ModelError(f"layer {name!r}: the model has none of that name")
        if what.activation is not None and what.activation.bits > 8:
            raise ModelError(
                f"layer {name!r}: ONNX's QuantizeLinear takes up to 8 bits, its input has "
                f"{what.activation.bits}"
            )
        found[first[id(modules[name])]] = what
    return found


def _folded(
    model: nn.Module, quantized: dict[str, Quantized]
) -> tuple[nn.Module, dict[str, Quantized]]:
    """Batch-norm folded into the convolutions before it, without which no runtime can keep them in
    integers. It stretches rows of weights, so that the grids stretch along: a row turned over has
    its codes mirrored."""
    try:
        folded = fuse(model)
    except Exception as error:  # a model that fx cannot trace keeps its batch-norm
        log.warning(
            "batch-norm is not folded: the model cannot be traced (%s)",
            str(error).strip().splitlines()[0],
        )
        return model, quantized
    before, after = dict(model.named_modules()), dict(folded.named_modules())
    made = {}
    for name, what in quantized.items():
        if name in after:  # else the model never calls it
            grid = what.weight
            if grid is not None:
                grid = stretched(grid, _weight(before[name]), _weight(after[name]))
            made[name] = Quantized(grid, what.activation)
    return folded, made


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight.detach()


def _exported(model: nn.Module, example: Tensor) -> Any:
    sizes = ({0: torch.export.Dim("batch")},)
    inputs = (
        example if len(example) > 1 else torch.cat([example, example])
    )  # a batch of one would be taken for a constant
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model, (inputs,), dynamo=True, optimize=True, verbose=False, dynamic_shapes=sizes
            )
    except Exception as error:  # whatever the model's own code, torch.export or the exporter raise
        raise ModelError(
            f"torch.onnx cannot export the model: {str(error).strip().splitlines()[0]}"
        ) from error
    finally:
        logging.disable(before)
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces, with paths of this machine
    return proto


class _Pair(nn.Module):
    """QuantizeLinear and DequantizeLinear on `grid`. One of fewer than 8 bits is clipped to its
    codes first."""

    scale: Tensor
    zero: Tensor

    def __init__(self, grid: ActivationGrid) -> None:
        super().__init__()
        top = 2**grid.bits - 1
        self._range = (
            tuple(grid.scale * (code - grid.zero) for code in (0, top)) if grid.bits < 8 else None
        )
        self.register_buffer("scale", torch.tensor(grid.scale, dtype=torch.float32))
        self.register_buffer("zero", torch.tensor(grid.zero, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        if self._range is not None:
            x = x.clamp(*self._range)
        codes = torch.onnx.ops.symbolic(
            "QuantizeLinear", (x, self.scale, self.zero), dtype=torch.uint8, shape=shape
        )
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (codes, self.scale, self.zero), dtype=torch.float32, shape=shape
        )


class _InputPair:
    def __init__(self, grid: ActivationGrid) -> None:
        self._pair = _Pair(grid)

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return with_first(args, kwargs, self._pair)


class _FromCodes(nn.Module):
    """Codes -> weight, by DequantizeLinear."""

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: Tensor, zero: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)

    def forward(self, codes: Tensor) -> Tensor:
        along: dict[str, Any] = {"axis": 0} if self.scale.ndim else {}
        inputs = (codes, self.scale, self.zero)
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", inputs, along, dtype=torch.float32, shape=codes.shape
        )


def _make_from_codes(
    name: str, module: nn.Module, grid: Grid, signed: bool, shared: dict[tuple[int, bool], Tensor]
) -> None:
    """Let `module` make its weight from its codes, which are moved to int8 about 0 if they are to
    be `signed`."""
    weight = _weight(module)
    codes = grid.codes(weight.flatten(1))
    if not torch.allclose(grid.values(codes).reshape(weight.shape), weight, rtol=1e-4, atol=1e-7):
        raise ModelError(f"layer {name!r}: its weights do not lie on their grid")
    kind, offset = (torch.int8, grid.zero[:1]) if signed else (torch.uint8, torch.zeros(1))
    shape = (-1,) if len(grid.scale) > 1 else ()
    made = _FromCodes(
        grid.scale.reshape(shape).float(), (grid.zero - offset).reshape(shape).to(kind)
    )
    stored = shared.setdefault(
        (weight.data_ptr(), signed), (codes - offset).reshape(weight.shape).to(kind)
    )
    # torch would run `made` to see whether it gives a weight of that shape; it stands for an
    # operator of ONNX and gives none
    parametrize.register_parametrization(module, "weight", made, unsafe=True)
    module.parametrizations.weight.original = nn.Parameter(stored, requires_grad=False)  # type: ignore[union-attr]
