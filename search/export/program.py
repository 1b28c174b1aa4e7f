"""A program of torch.export."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from apportion.compressors.errors import ModelError
from apportion.db.files import write_atomically
from apportion.evaluators.data import trees
from apportion.evaluators.rewriting.reduced import reduce_layers
from apportion.evaluators.rewriting.shapes import by_size, export_dim, reason, widest
from apportion.search.export.compressed_model import CompressedModel
from apportion.search.export.formats import Format, Runner
from apportion.search.runs.pipeline import ModelProblem


class Program(Format):
    """A program of torch.export, without the model's Python code; the task's axes are dynamic, as
    far as they can be. Filter levels come in the shapes that are left."""

    file, runtime, tolerance = "model.pt2", "torch.export", 1e-4

    def check(self, problem: ModelProblem) -> None:
        check_outputs("torch", problem)

    def write(self, subject: CompressedModel, path: Path) -> Sequence[str]:
        model = copy.deepcopy(subject.model)
        reduce_layers(model, subject.reduced(), subject.quantized())

        def exported(axes: Sequence[str]) -> Any:
            return _exported(model, subject.example_inputs(2 if axes else 1), axes)

        program, notes = widest(subject.axes(), exported)

        def save(temporary: Path) -> None:
            with temporary.open("wb") as file:
                torch.export.save(program, file)

        write_atomically(path, save)
        return notes

    def load(self, subject: CompressedModel, path: Path) -> Runner:  # noqa: ARG002 - the file says all
        with path.open("rb") as file:
            program = torch.export.load(file)
        return by_size(program.module(), _size(program))


def check_outputs(form: str, problem: ModelProblem) -> None:
    """A program gives the same tensors for any number of samples; detectors that give a list with
    boxes for each image do not. Raises ModelError, with the name `form` of the format."""
    model, task = problem.workload.model, problem.workload.task
    batch = next(problem.workload.calibration.batches(2))
    if task.samples(batch) < 2:
        return
    counts = []
    for samples in (1, 2):
        given = trees.cut(batch, slice(samples))
        with torch.no_grad():
            counts.append(len(trees.tensors(task.forward(model, given))))
    if counts[0] != counts[1]:
        raise ModelError(
            f"export format {form}: model {problem.job.workload.name!r} gives {counts[0]} tensors "
            f"for one sample and {counts[1]} for two, as lists with boxes for each image; a "
            "program gives as many for any number: let the model give its raw predictions "
            "(a task of your own decodes them), or export it as safetensors"
        )


def _exported(model: torch.nn.Module, inputs: Any, axes: Sequence[str]) -> Any:
    """Raises ModelError."""
    args, kwargs = trees.arguments(inputs)
    shapes = trees.dynamic(inputs, axes, export_dim) if axes else None
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever the model's own code, or torch.export, raise
        raise ModelError(f"torch.export cannot export the model: {reason(error)}") from error
    finally:
        logging.disable(before)


def _size(program: Any) -> int | None:
    """How many rows the program takes; None for any number."""
    own = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.name in own]
    first = next(value.shape[0] for value in values if isinstance(value, torch.Tensor))
    return first if isinstance(first, int) else None
