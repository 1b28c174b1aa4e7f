"""ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_structure, tree_unflatten

from apportion.compressors.calibration import call
from apportion.evaluators.rewriting import onnx_files, onnx_model
from apportion.evaluators.rewriting.shapes import by_size, widest
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

    def write(self, subject: CompressedModel, path: Path) -> Sequence[str]:
        def exported(axes: Sequence[str]) -> Any:
            inputs = subject.example_inputs(2 if axes else 1)
            quantized, reduced = subject.quantized(), subject.reduced()
            return onnx_model.to_onnx(subject.model, inputs, quantized, reduced, axes=axes)

        proto, notes = widest(subject.axes(), exported)
        onnx_files.save(proto, path)
        layers = subject.problem.database.layers
        linear = {name for name, layer in layers.items() if layer.kind == "linear"}
        quantized = subject.quantized()
        if any(quantized[name].activation is None for name in linear & quantized.keys()):
            notes.append(_FLOATS)
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
            return tree_unflatten(onnx_model.outputs(opened, kwargs or args), structure)

        return by_size(run, rows if isinstance(rows, int) else None)
