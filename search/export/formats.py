"""The formats of exported models: how each is written, and run again in what runs it."""

from __future__ import annotations

import copy
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_model, save_model
from torch.utils._pytree import tree_structure, tree_unflatten

from apportion.compressors.errors import ModelError
from apportion.db.files import write_atomically
from apportion.db.layers.packed import load_packed, save_packed
from apportion.evaluators.data import trees
from apportion.evaluators.rewriting import onnx_files, onnx_model
from apportion.evaluators.rewriting.reduced import reduce_layers
from apportion.search.export.compressed_model import CompressedModel

Runner = Callable[..., Any]
"""Called as the model is: the same inputs, the same outputs."""


class Format(ABC):
    """Base of all formats; one that is registered (registry.py) can be asked for by its name.

    `file`: name of what it writes; `runtime`: what runs that, for messages; `tolerance`: by how
    much its outputs may differ, as a share of the largest output; None where rounding to a grid may
    turn a last bit into a step, and the metric alone decides."""

    file: ClassVar[str]
    runtime: ClassVar[str]
    tolerance: ClassVar[float | None]

    @abstractmethod
    def write(self, subject: CompressedModel, path: Path) -> None:
        """Write `subject.model` to `path`. Raises ModelError for a model that the format cannot
        hold, OutputError."""

    @abstractmethod
    def load(self, subject: CompressedModel, path: Path) -> Runner:
        """The written model in its runtime."""

    def size(self, path: Path) -> int:
        """Bytes of what was written."""
        return path.stat().st_size


class Safetensors(Format):
    """The state dict, in floats."""

    file, runtime, tolerance = "model.safetensors", "torch", 0.0

    def write(self, subject: CompressedModel, path: Path) -> None:
        # Without the mark, other tools (transformers) refuse the file.
        marks = {"format": "pt"}
        write_atomically(path, lambda temporary: save_model(subject.model, str(temporary), marks))

    def load(self, subject: CompressedModel, path: Path) -> Runner:
        model = copy.deepcopy(subject.model)
        _forget(model)
        load_model(model, str(path))
        return model


class Packed(Format):
    """The state dict, packed: db/layers/packed.py."""

    file, runtime, tolerance = "model.packed", "torch", 0.0

    def write(self, subject: CompressedModel, path: Path) -> None:
        grids = {
            f"{name}.weight": what.weight
            for name, what in subject.quantized().items()
            if what.weight is not None
        }
        save_packed(path, subject.model.state_dict(), grids)

    def load(self, subject: CompressedModel, path: Path) -> Runner:
        model = copy.deepcopy(subject.model)
        _forget(model)
        model.load_state_dict(load_packed(path))
        return model


class Program(Format):
    """A program of torch.export, without the model's Python code; the batch is dynamic. Filter
    levels come in the shapes that are left."""

    file, runtime, tolerance = "model.pt2", "torch.export", 1e-4

    def write(self, subject: CompressedModel, path: Path) -> None:
        inputs = subject.problem.workload.task.inputs(subject.example())
        args, kwargs = trees.arguments(inputs)
        model = copy.deepcopy(subject.model)
        reduce_layers(model, subject.reduced(), subject.quantized())
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(
                    model, args, kwargs, dynamic_shapes=trees.dynamic(inputs), strict=False
                )
        except Exception as error:  # whatever the model's own code, or torch.export, raise
            raise ModelError(
                f"torch.export cannot export the model: {str(error).strip().splitlines()[0]}"
            ) from error
        finally:
            logging.disable(before)

        def save(temporary: Path) -> None:
            with temporary.open("wb") as file:
                torch.export.save(program, file)

        write_atomically(path, save)

    def load(self, subject: CompressedModel, path: Path) -> Runner:  # noqa: ARG002 - the file says all
        with path.open("rb") as file:
            return torch.export.load(file).module()


class Onnx(Format):
    """ONNX, quantized layers in integers, filter levels in the shapes that are left:
    evaluators/rewriting/onnx_model.py. Above 2 GB with a second file, model.onnx.data."""

    file, runtime, tolerance = "model.onnx", "ONNX Runtime", None

    def write(self, subject: CompressedModel, path: Path) -> None:
        inputs = subject.problem.workload.task.inputs(subject.example())
        proto = onnx_model.to_onnx(subject.model, inputs, subject.quantized(), subject.reduced())
        onnx_files.save(proto, path)

    def size(self, path: Path) -> int:
        return onnx_files.size(path)

    def load(self, subject: CompressedModel, path: Path) -> Runner:
        opened: Any = onnx_model.session(path, torch.get_num_threads())
        with torch.inference_mode():
            outputs = subject.problem.workload.task.forward(subject.model, subject.example())
        structure = tree_structure(outputs)  # the file has the tensors alone

        def run(*args: Any, **kwargs: Any) -> Any:
            return tree_unflatten(onnx_model.outputs(opened, kwargs or args), structure)

        return run


def _forget(model: torch.nn.Module) -> None:
    """What was written, and not what stood there before, must be what runs."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
