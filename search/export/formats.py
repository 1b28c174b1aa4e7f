"""The formats of exported models: how each is written, and run again in what runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_model, save_model

from apportion.compressors.levels import Level
from apportion.db.files import write_atomically
from apportion.db.layers.packed import load_packed, save_packed
from apportion.search.export.compressed_model import CompressedModel
from apportion.search.jobs.job import Job
from apportion.search.runs.pipeline import ModelProblem

Runner = Callable[..., Any]
"""Called as the model is: the same inputs, the same outputs."""


class Format(ABC):
    """Base of all formats; one that is registered (registry.py) can be asked for by its name.

    `file`: name of what it writes; `runtime`: what runs that, for messages; `tolerance`: by how
    much its outputs may differ, as a share of the largest output; None where rounding to a grid may
    turn a last bit into a step, and the metric alone decides."""

    file: ClassVar[str]
    runtime: ClassVar[str]
    tolerance: float | None
    on_device: ClassVar[bool] = False
    """Whether what runs it may be moved to the job's device to be scored."""

    def check(self, problem: ModelProblem) -> None:  # noqa: B027
        """Whether the format can hold what comes of `problem`, as far as that shows before
        anything is computed; by default all is. Raises ModelError."""

    def check_job(self, job: Job) -> None:  # noqa: B027
        """The same of what a job file says by itself, before anything is built. Raises
        ModelError, ConfigurationError."""

    def check_level(self, problem: ModelProblem, layer: str, level: Level) -> None:  # noqa: B027
        """Whether the format can hold a layer at a level that a search may choose, or has chosen;
        by default all are. Raises ModelError, which need not name the two."""

    @abstractmethod
    def write(self, subject: CompressedModel, path: Path) -> Sequence[str] | None:
        """Write `subject.model` to `path`. Gives what who runs it must know, a sentence each, if
        there is anything. Raises ModelError for a model that the format cannot hold, and
        OutputError."""

    @abstractmethod
    def load(self, subject: CompressedModel, path: Path) -> Runner:
        """The written model in its runtime."""

    def size(self, path: Path) -> int:
        """Bytes of what was written."""
        return path.stat().st_size

    def kernels(self, subject: CompressedModel) -> list[dict[str, str]]:  # noqa: ARG002
        """What runs which level on which runtime, a row each for the model card; by default
        nothing is known."""
        return []


class Safetensors(Format):
    """The state dict, in floats."""

    file, runtime, tolerance, on_device = "model.safetensors", "torch", 0.0, True

    def write(self, subject: CompressedModel, path: Path) -> None:
        # Without the mark, other tools (transformers) refuse the file.
        marks = {"format": "pt"}
        write_atomically(path, lambda temporary: save_model(subject.model, str(temporary), marks))

    def load(self, subject: CompressedModel, path: Path) -> Runner:
        model = subject.fresh(path.parent)
        forget(model)
        load_model(model, str(path))
        return model


class Packed(Format):
    """The state dict, packed: db/layers/packed.py."""

    file, runtime, tolerance, on_device = "model.packed", "torch", 0.0, True

    def write(self, subject: CompressedModel, path: Path) -> None:
        grids = {
            f"{name}.weight": what.weight
            for name, what in subject.quantized().items()
            if what.weight is not None
        }
        save_packed(path, subject.model.state_dict(), grids)

    def load(self, subject: CompressedModel, path: Path) -> Runner:
        model = subject.fresh(path.parent)
        forget(model)
        model.load_state_dict(load_packed(path))
        return model


def forget(model: torch.nn.Module) -> None:
    """What was written, and not what stood there before, must be what runs."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
