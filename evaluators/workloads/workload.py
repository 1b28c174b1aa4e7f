"""Workloads: a model with the data that it is compressed, searched and tested on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from apportion.compressors.errors import ApportionError, DataError, ModelError
from apportion.compressors.progress import Progress
from apportion.db.documents.section import SEEDS, Section
from apportion.evaluators.workloads.data import (
    DataConfig,
    DigitsData,
    Split,
    Splits,
    TensorSplit,
    draw,
    load_splits,
)
from apportion.evaluators.workloads.digits import digits_splits, load_trained
from apportion.evaluators.workloads.models import build_model, folded

_DEFAULT_SAMPLES = 1024
_SELECTION = 4096
"""Images at most that the final pick among the best profiles is made on ..."""
_FEW = 512
"""... and at least: with fewer, chance would pick."""


class WorkloadConfig(Section):
    """The job file's `workload`."""

    model: str | None = Field(
        None,
        min_length=1,
        description="A registered name, torchvision:NAME, huggingface:NAME, or "
        "package.module:function.",
    )
    weights: str | None = Field(
        None,
        description="A .safetensors or .pt file, its URL, or one of torchvision's weight enums.",
    )
    fold: bool = Field(
        False,
        description="Fold batch-norm into the convolutions before it, as integer hardware runs "
        "them.",
    )
    data: DataConfig
    calibration_samples: int | None = Field(
        None,
        ge=1,
        description="Random calibration images; default: 1,024, or all where there are fewer.",
    )
    seed: int = Field(0, ge=0, lt=SEEDS, description="Of the choice of calibration images.")
    batch_size: int = Field(128, ge=1)

    @property
    def name(self) -> str:
        """Of the model."""
        return self.model or "digits_resnet"

    @model_validator(mode="after")
    def _needs_a_model(self) -> WorkloadConfig:
        if self.model is None and not isinstance(self.data, DigitsData):
            raise ValueError(
                "workload.model is missing (only `data: {kind: digits}` brings a model of its own)"
            )
        return self


@dataclass(frozen=True, slots=True)
class Chosen:
    """Some images of a split, not loaded yet."""

    split: Split
    indices: tuple[int, ...]

    def load(self, progress: Progress | None = None) -> TensorSplit:
        return self.split.subset(self.indices, progress)


@dataclass
class Workload:
    """`model` in eval mode on the CPU; `calibration` what the database and the search see, in a
    fixed random order; `train` what batch-norm is re-tuned on; `test` what only reports look at;
    `selection` images that neither the database nor the search sees, for the final pick among the
    best profiles (None where there are too few)."""

    model: nn.Module
    calibration: TensorSplit
    train: Split
    test: Split
    batch_size: int = 128
    selection: Chosen | None = None


def load_workload(config: WorkloadConfig, progress: Progress | None = None) -> Workload:
    """Load the model and its data, and check that they go together. Raises ModelError,
    WeightsError, DataError, UnknownNameError."""
    name = config.name
    model = build_model(name, config.weights)
    if isinstance(config.data, DigitsData):
        splits = digits_splits()
        if name == "digits_resnet" and config.weights is None:
            load_trained(model, progress)
    else:
        splits = load_splits(config.data)
    if config.fold:
        model = folded(model, name)
    available = len(splits.calibration)
    wanted = config.calibration_samples or min(_DEFAULT_SAMPLES, available)
    if wanted > available:
        raise DataError(
            "workload.calibration_samples",
            f"{wanted} images are asked for, the calibration data has {available}",
        )
    generator = np.random.default_rng(config.seed)
    calibration = draw(splits.calibration, wanted, generator, progress)
    train = splits.train or splits.calibration
    selection = _selection(splits, wanted, config.seed, generator)
    workload = Workload(model.eval(), calibration, train, splits.test, config.batch_size, selection)
    _check(workload, name)
    return workload


def _selection(
    splits: Splits, wanted: int, seed: int, generator: np.random.Generator
) -> Chosen | None:
    """Random training images, none of them among the `wanted` ones that were drawn for
    calibration."""
    if splits.train is None or splits.train is splits.calibration:
        split, order = (
            splits.calibration,
            np.random.default_rng(seed).permutation(len(splits.calibration))[wanted:],
        )
    else:
        split, order = splits.train, generator.permutation(len(splits.train))
    return Chosen(split, tuple(order[:_SELECTION].tolist())) if len(order) >= _FEW else None


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the state dict's names, types, shapes and bytes, in order of name; 64 hex
    digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        _update(digest, name, tensor)
    return digest.hexdigest()


def data_fingerprint(split: TensorSplit) -> str:
    """SHA-256 over inputs and labels; 64 hex digits."""
    digest = hashlib.sha256()
    _update(digest, "inputs", split.inputs)
    _update(digest, "labels", split.labels)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, name: str, tensor: torch.Tensor) -> None:
    digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().tobytes())


def _check(workload: Workload, name: str) -> None:
    """Two images of every split must run through the model, and every label must be one of its
    outputs: test data that do not fit would otherwise only show when the search is over."""
    for part, split in (
        ("calibration", workload.calibration),
        ("train", workload.train),
        ("test", workload.test),
    ):
        inputs = split.subset(range(min(2, len(split)))).inputs
        classes = _count_outputs(workload.model, inputs, name, part)
        lowest, highest = split.label_range()
        if lowest < 0 or highest >= classes:
            raise DataError(
                "workload.data",
                f"{part} labels must lie in 0..{classes - 1} for model {name!r}; the highest is "
                f"{highest}, the lowest {lowest}",
            )


def _count_outputs(model: nn.Module, inputs: torch.Tensor, name: str, part: str) -> int:
    try:
        with torch.no_grad():
            outputs = model(inputs)
    except ApportionError:
        raise
    except Exception as error:  # whatever the user's model raises on data of the wrong shape
        raise DataError(
            "workload.data",
            f"{part} inputs of shape {list(inputs.shape[1:])} do not run through model {name!r}: "
            f"{error}",
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.dim() != 2:
        raise ModelError(f"model {name!r} must give one tensor [N, classes]")
    return outputs.shape[1]
