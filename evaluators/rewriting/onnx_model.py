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
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apportion.compressors.activations import ActivationGrid, InputGrid, TokenGrid, quantize_input
from apportion.compressors.calibration import call, count_samples
from apportion.compressors.errors import ModelError
from apportion.compressors.grids import Grid
from apportion.evaluators.data import trees
from apportion.evaluators.models.folding import fold_batchnorm
from apportion.evaluators.rewriting.onnx_codes import (
    CODES,
    InputPair,
    Pair,
    make_from_codes,
    stretched,
    weight_of,
)
from apportion.evaluators.rewriting.onnx_files import import_package
from apportion.evaluators.rewriting.processor import may_be_signed
from apportion.evaluators.rewriting.reduced import reduce_layers
from apportion.evaluators.rewriting.shapes import reason
from apportion.evaluators.tasks.task import Inputs

log = logging.getLogger(__name__)
FLOAT_INPUTS = ("session.qdq_matmulnbits_accuracy_level", "1")
"""The option of ONNX Runtime's sessions with which the inputs of linear layers stay in floats where
nothing but their weights is quantized."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """What ONNX needs to know of a layer besides its float weight: the grids of its weight and of
    its input."""

    weight: Grid | None = None
    activation: InputGrid | None = None


def to_onnx(
    model: nn.Module,
    example: Inputs,
    quantized: Mapping[str, Quantized],
    reduced: Collection[str] = (),
    output: ActivationGrid | None = None,
    axes: Sequence[str] = ("batch",),
) -> Any:
    """A model in ONNX. Its outputs have the names that the model gives them.

    Args:
        model: in eval mode.
        example: what it is called with, for some samples.
        quantized: layers by module name; their weights must lie on the grids given. Those on grids
            of groups, or of a float format, stay in floats.
        reduced: layers, which are not quantized, that come in the shapes that are left of them
            (evaluators/rewriting/reduced.py).
        output: quantizes the outputs too, of which there is one tensor.
        axes: the leading dimensions of all inputs that stay open.

    Returns:
        An onnx.ModelProto.

    Raises:
        ModelError: torch.onnx cannot export the model, or it lacks a layer.
        ConfigurationError: onnx is missing.
    """
    import_package("onnx")
    import_package("onnxscript")
    plain = copy.deepcopy(model).eval().requires_grad_(False)
    for module in plain.modules():
        quantize_input(module, None)
    _with_plain_experts(plain)
    plain, quantized = _folded(plain, example, _once(plain, quantized))
    modules = dict(plain.named_modules(remove_duplicate=False))
    reduce_layers(
        plain, [name for name in reduced if name in modules], quantized
    )  # traced, shared layers have one name
    modules = dict(plain.named_modules(remove_duplicate=False))
    codes: dict[
        tuple[int, bool], Tensor
    ] = {}  # of each weight that layers share, by its address and whether it is signed
    for name, what in quantized.items():
        if isinstance(what.activation, ActivationGrid):
            pair = InputPair(what.activation)
            modules[name].register_forward_pre_hook(pair, with_kwargs=True)
        if what.weight is not None and what.weight.plain:
            make_from_codes(
                name, modules[name], what.weight, may_be_signed(what.weight, what.activation), codes
            )
    if output is not None:
        plain = nn.Sequential(plain, Pair(output))
    return _exported(plain, example, axes)


def session(model: Any, threads: int) -> Any:
    """An onnxruntime.InferenceSession on the CPU, of an onnx.ModelProto of less than 2 GB, or of a
    file of any size."""
    options = import_package("onnxruntime").SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Else it would round the inputs of linear layers to 8 bits where their weights are quantized.
    options.add_session_config_entry(*FLOAT_INPUTS)
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    return import_package("onnxruntime").InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )


def in_integers(proto: Any) -> set[str]:
    """The layers whose products ONNX Runtime does in integers when it runs `proto`: those whose
    codes reach a quantized operator. It has them for layers whose outputs are quantized next, and
    turns the others back into floats."""
    onnx, runtime = import_package("onnx"), import_package("onnxruntime")
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
    return {value.removesuffix(CODES) for value in used if value.endswith(CODES)}


def run(opened: Any, inputs: Inputs) -> Tensor:
    """The output of a model that has one."""
    return outputs(opened, inputs)[0]


def outputs(opened: Any, inputs: Inputs) -> list[Tensor]:
    """The tensors of the outputs, in the order of their tree, for what the model is called with."""
    names = [one.name for one in opened.get_inputs()]
    keyed = inputs if isinstance(inputs, dict) and set(inputs) >= set(names) else None
    values = [keyed[name] for name in names] if keyed else trees.tensors(inputs)
    given = {name: value.numpy() for name, value in zip(names, values, strict=True)}
    return [torch.from_numpy(found) for found in opened.run(None, given)]


def version() -> str:
    """Of ONNX Runtime."""
    return str(import_package("onnxruntime").__version__)


def _once(model: nn.Module, quantized: Mapping[str, Quantized]) -> dict[str, Quantized]:
    """`quantized` with each module under its first name, after a check of names and bits."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first = {id(module): name for name, module in model.named_modules()}
    found = {}
    for name, what in quantized.items():
        if name not in modules:
            raise ModelError(f"layer {name!r}: the model has none of that name")
        if isinstance(what.activation, TokenGrid):
            raise ModelError(
                f"layer {name!r}: QuantizeLinear has one scale for all tokens; quantize the inputs "
                "with one grid (w8a8), or leave them in floats"
            )
        if what.activation is not None and what.activation.bits > 8:
            raise ModelError(
                f"layer {name!r}: ONNX's QuantizeLinear takes up to 8 bits, its input has "
                f"{what.activation.bits}"
            )
        found[first[id(modules[name])]] = what
    return found


def _with_plain_experts(model: nn.Module) -> None:
    """ONNX has no product of groups of rows with a matrix each, as experts of transformers' models
    run; they can also look up each row's matrix."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_experts_implementation", None) == "grouped_mm":
            module.set_experts_implementation("batched_mm")  # type: ignore[operator]


def _folded(
    model: nn.Module, example: Tensor, quantized: dict[str, Quantized]
) -> tuple[nn.Module, dict[str, Quantized]]:
    """Batch-norm folded into the layers before it, without which no runtime can keep them in
    integers. It stretches rows of weights, so that the grids stretch along: a row turned over has
    its codes mirrored."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return model, quantized
    try:
        folded = fold_batchnorm(model, example)
    except ModelError as error:  # such a model keeps its batch-norm
        log.warning("batch-norm is not folded: %s", error)
        return model, quantized
    before, after = dict(model.named_modules()), dict(folded.named_modules())
    made = {}
    for name, what in quantized.items():
        if name in after:  # else the model never calls it
            grid = what.weight
            if grid is not None:
                grid = stretched(grid, weight_of(before[name]), weight_of(after[name]))
            made[name] = Quantized(grid, what.activation)
    return folded, made


def _exported(model: nn.Module, example: Inputs, axes: Sequence[str]) -> Any:
    if axes and count_samples(example) == 1:  # a batch of one would be taken for a constant
        example = trees.joined([example, example])
    args, kwargs = trees.arguments(example)
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
                model,
                args,
                kwargs=kwargs,
                dynamo=True,
                optimize=True,
                verbose=False,
                output_names=_output_names(model, example),
                dynamic_shapes=trees.dynamic(example, axes, torch.export.Dim) if axes else None,
            )
    except Exception as error:  # whatever the model's own code, torch.export or the exporter raise
        raise ModelError(f"torch.onnx cannot export the model: {reason(error)}") from error
    finally:
        logging.disable(before)
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces, with paths of this machine
    return proto


def _output_names(model: nn.Module, example: Inputs) -> list[str] | None:
    """What the model calls its outputs, where it gives tensors by name."""
    with torch.no_grad():
        outputs = call(model, example)
    if not isinstance(outputs, Mapping) or not all(
        isinstance(value, Tensor) for value in outputs.values()
    ):
        return None
    return list(outputs)
