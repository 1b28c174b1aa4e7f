"""ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_structure, tree_unflatten

from apportion.compressors.calibration import call
from apportion.compressors.errors import ModelError
from apportion.compressors.levels import Level
from apportion.evaluators.rewriting import onnx_files, onnx_model
from apportion.evaluators.rewriting.onnx_files import import_package
from apportion.evaluators.rewriting.shapes import by_size, reason, widest
from apportion.search.export.compressed_model import CompressedModel
from apportion.search.export.formats import Format, Runner
from apportion.search.export.program import check_outputs
from apportion.search.runs.pipeline import ModelProblem

_FLOATS = (
    "ONNX Runtime rounds the inputs of linear layers whose weights alone are quantized to 8 bits, "
    f"unless its session option {' is '.join(onnx_model.FLOAT_INPUTS)}, as it was here."
)


class Onnx(Format):
    """ONNX, quantized layers in integers, filter levels in the shapes that are left, the task's
    axes dynamic as far as they can be: evaluators/rewriting/onnx_model.py. Above 2 GB with a second
    file, model.onnx.data."""

    file, runtime, tolerance = "model.onnx", "ONNX Runtime", None

    def check(self, problem: ModelProblem) -> None:
        check_outputs("onnx", problem)

    def check_level(self, problem: ModelProblem, layer: str, level: Level) -> None:  # noqa: ARG002
        if level.quantization is not None and level.quantization.token:
            raise ModelError("QuantizeLinear has one scale for all tokens, as levels wBaA have")

    def write(self, subject: CompressedModel, path: Path) -> Sequence[str]:
        def exported(axes: Sequence[str]) -> Any:
            inputs = subject.example_inputs(2 if axes else 1)
            quantized, reduced = subject.quantized(), subject.reduced()
            return onnx_model.to_onnx(subject.model, inputs, quantized, reduced, axes=axes)

        proto, notes = widest(subject.axes(), exported)
        onnx = import_package("onnx")
        try:
            onnx_files.save(proto, path)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ModelError(_unfit(subject.model, error)) from error
        layers = subject.problem.database.layers
        linear = {name for name, layer in layers.items() if layer.kind == "linear"}
        quantized = subject.quantized()
        plain = {name for name, one in quantized.items() if one.weight is None or one.weight.plain}
        if any(quantized[name].activation is None for name in linear & quantized.keys() & plain):
            notes.append(_FLOATS)
        if others := sorted(quantized.keys() - plain):
            notes.append(
                f"{len(others)} layers, such as {others[0]}, hold floats that lie on grids of "
                "groups of columns or of a float format: this file does not store their codes."
            )
        return notes

    def size(self, path: Path) -> int:
        return onnx_files.size(path)

    def load(self, subject: CompressedModel, path: Path) -> Runner:
        opened: Any = onnx_model.session(path, torch.get_num_threads())
        with torch.inference_mode():
            outputs = call(subject.model, subject.example_inputs(2))
        structure = tree_structure(outputs)  # the file has the tensors alone
        rows = opened.get_inputs()[0].shape[0]

        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                found = onnx_model.outputs(opened, kwargs or args)
            except Exception as error:  # ONNX Runtime's own have no common class
                raise ModelError(_unfit(subject.model, error)) from error
            return tree_unflatten(found, structure)

        return by_size(run, rows if isinstance(rows, int) else None)


def _unfit(model: nn.Module, error: Exception) -> str:
    """Why what was written is no ONNX file, or does not run."""
    text = f"the ONNX file does not hold the model: {reason(error)}"
    empty = next((name for name, p in model.named_parameters() if not p.numel()), None)
    if empty is None:
        return text
    return (
        f"ONNX cannot hold what is left where all went (drop): {empty} is empty; formats "
        f"safetensors and torch can ({text})"
    )
