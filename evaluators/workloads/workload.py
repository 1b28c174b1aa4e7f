"""Workloads: a model with the data that it is compressed, searched and tested on."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from apportion.compressors.calibration import FullPass, call, count_samples
from apportion.compressors.errors import ConfigurationError, DataError
from apportion.compressors.progress import Progress, silent
from apportion.compressors.threads import torch_threads
from apportion.evaluators.data import trees
from apportion.evaluators.data.augment import AugmentConfig
from apportion.evaluators.data.config import DigitsData, ImageFolderData, ImageListData
from apportion.evaluators.data.dataset import Batch, Dataset, Splits, TensorDataset, draw
from apportion.evaluators.data.digits import load_trained
from apportion.evaluators.data.load import load_splits
from apportion.evaluators.data.registry import Context
from apportion.evaluators.models.build import build_model, class_names, folded, settled
from apportion.evaluators.tasks.image_classification import ImageClassification
from apportion.evaluators.tasks.registry import make_task
from apportion.evaluators.tasks.task import Inputs, Task
from apportion.evaluators.workloads.checks import check_batch, check_together
from apportion.evaluators.workloads.classes import numbered
from apportion.evaluators.workloads.config import WorkloadConfig
from apportion.evaluators.workloads.repeatable import check_repeatable

GIVEN = "given:"
"""Before the name of a model that a program had in memory."""
_DEFAULT_SAMPLES = 1024
_SELECTION = 4096
"""Samples at most that the final pick among the best profiles is made on ..."""
_FEW = 512
"""... and at least: with fewer, chance would pick."""
_FIRST = 64
"""Calibration samples at most that the model is run on twice at the start."""
TUNING = 12_800
"""Training samples that corrections look at, at most: as many as the published implementation
re-tunes batch-norm on (100 batches of 128); ImageNet has a hundred times more."""
_MANY = 50_000
"""Training samples at most that are looked at before they are needed."""
_SUMS = 8
"""Numbers that stand for the outputs of one input."""


_Piece = tuple[Inputs, int]
"""What a model is called with, and the number of samples that it adds to those before."""


def _samples(piece: _Piece) -> int:
    return piece[1]


def _run(model: nn.Module, piece: _Piece) -> Any:
    return call(model, piece[0])


@dataclass(frozen=True, slots=True)
class Subset:
    """Some samples of a split, not loaded yet."""

    split: Dataset
    indices: tuple[int, ...]

    def load(self, progress: Progress = silent) -> TensorDataset:
        return self.split.subset(self.indices, progress)


@dataclass
class Workload:
    """A model with its data, and what it is for.

    Args:
        model: in eval mode on the CPU.
        calibration: what the database and the search see, in a fixed random order.
        train: what batch-norm is re-tuned on, and what fine-tuning trains on.
        test: what only reports look at.
        batch_size: of all passes.
        selection: samples that neither the database nor the search sees, for the final pick among
            the best profiles; None where there are too few.
        task: how batches are fed, and what outputs are worth.
    """

    model: nn.Module
    calibration: TensorDataset
    train: Dataset
    test: Dataset
    batch_size: int = 128
    selection: Subset | None = None
    task: Task = field(default_factory=ImageClassification)

    def full_pass(self, batches: Callable[[], Iterable[Batch]], count: int = 0) -> FullPass:
        """A pass over batches (`count` of them, for progress), fed and counted as the task says."""
        return FullPass(batches, self.task.samples, self.task.forward, count)

    def traced_pass(self) -> FullPass:
        """What layers are found on: two samples, which show most models whole, and then all of the
        calibration data."""
        data, size = self.calibration, self.batch_size
        return self.full_pass(lambda: chain(islice(data.batches(2), 1), data.batches(size)))

    def unpadded_pass(self, batches: Callable[[], Iterable[Batch]], count: int = 0) -> FullPass:
        """The same without padding, for what is measured inside the model."""
        if type(self.task).unpadded is Task.unpadded:
            return self.full_pass(batches, count)
        return FullPass(lambda: self._pieces(batches()), _samples, _run)

    def correction_pass(self, batches: Callable[[], Iterable[Batch]]) -> FullPass:
        """What corrections look at: no padding, but whole batches for batch-norm, whose statistics
        are those of a batch."""
        norms = any(isinstance(module, _BatchNorm) for module in self.model.modules())
        return self.full_pass(batches) if norms else self.unpadded_pass(batches)

    def _pieces(self, batches: Iterable[Batch]) -> Iterator[_Piece]:
        for batch in batches:
            samples = self.task.samples(batch)
            for inputs in self.task.unpadded(self.task.inputs(batch)):
                rows = count_samples(inputs)
                for start in range(0, rows, self.batch_size):
                    yield trees.cut(inputs, slice(start, start + self.batch_size)), samples
                    samples = 0  # counted once

    def augmented(self, config: AugmentConfig, seed: int) -> Iterator[Batch]:
        """Calibration batches, round by round, their samples changed at random; the same at every
        call with the same seed."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(config.rounds):
            for batch in self.calibration.batches(self.batch_size):
                yield self.task.augment(batch, config, generator)


def load_workload(config: WorkloadConfig, progress: Progress = silent) -> Workload:
    """Load the model and its data, and check that they go together. Raises ModelError,
    WeightsError, DataError, UnknownNameError."""
    name = config.name
    if name.startswith(GIVEN):
        raise ConfigurationError(
            f"model {name.removeprefix(GIVEN)!r} was in the memory of the program that called "
            "apportion.prepare: only such a program can load it again"
        )
    task = make_task(config.task.kind, config.task.options)
    model = build_model(name, config.weights, task, config.shapes)
    if isinstance(config.data, DigitsData) and name == "digits_resnet" and config.weights is None:
        load_trained(model, progress)
    classes = class_names(name, model)
    context = Context(
        name,
        task.identity,
        task.form,
        None if classes is None else tuple(classes),
        tuple(inspect.signature(model.forward).parameters),
        progress,
    )
    splits = load_splits(config.data, context)
    if isinstance(config.data, ImageFolderData | ImageListData):
        splits = numbered(splits, model.eval(), name)
    return assembled(config, model, splits, task, progress)


def assembled(
    config: WorkloadConfig,
    model: nn.Module,
    splits: Splits,
    task: Task,
    progress: Progress = silent,
) -> Workload:
    """A workload of these parts, after a check that they go together.

    Args:
        config: says which of the samples to take, and in what batches; gives the model's name.
        model: put in eval mode.
        splits: its data.
        task: what it is for.
        progress: told of samples that are read.

    Raises:
        ModelError, DataError, ConfigurationError: they do not go together.
    """
    name = config.name
    available = len(splits.calibration)
    wanted = config.calibration_samples or min(_DEFAULT_SAMPLES, available)
    if wanted > available:
        raise DataError(
            "workload.calibration_samples",
            f"{wanted} samples are asked for, the calibration data has {available}",
        )
    generator = np.random.default_rng(config.seed)
    calibration = draw(splits.calibration, wanted, generator, progress)
    train = splits.train or splits.calibration
    selection = _selection(splits, wanted, config.seed, generator)
    workload = Workload(
        model.eval(), calibration, train, splits.test, config.batch_size, selection, task
    )
    _check_files(workload, progress)
    workload.model = model = settled(workload.model, name, first_inputs(workload, _FIRST))
    parts = {"calibration": calibration, "train": train, "test": splits.test}
    check_together(workload.model, name, task, parts)
    some = range(min(_FIRST, workload.batch_size, len(calibration)))
    check_batch(workload.model, name, task, calibration.subset(some).batch)
    check_repeatable(workload.model, name, first_inputs(workload, _FIRST))
    if config.fold:
        workload.model = folded(model, name, first_inputs(workload, config.batch_size))
    return workload


def _check_files(workload: Workload, progress: Progress) -> None:
    """Broken image files show now, and not when the search is over: all test images, those of the
    final pick, and training images unless those are very many."""
    chosen = workload.selection
    for split, indices in (
        (workload.test, range(len(workload.test))),
        (workload.train, range(min(len(workload.train), _MANY))),
        *(((chosen.split, chosen.indices),) if chosen is not None else ()),
    ):
        split.check(indices, progress)


def _selection(
    splits: Splits, wanted: int, seed: int, generator: np.random.Generator
) -> Subset | None:
    """Random training samples, none of them among the `wanted` ones that were drawn for
    calibration."""
    if splits.train is None or splits.train is splits.calibration:
        split, order = (
            splits.calibration,
            np.random.default_rng(seed).permutation(len(splits.calibration))[wanted:],
        )
    else:
        split, order = splits.train, generator.permutation(len(splits.train))
    return Subset(split, tuple(order[:_SELECTION].tolist())) if len(order) >= _FEW else None


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the state dict's names, types, shapes and bytes, in order of name; 64 hex
    digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        _update(digest, name, tensor)
    return digest.hexdigest()


def first_inputs(workload: Workload, count: int) -> Inputs:
    """What the model is called with for the first `count` calibration samples, a batch at most."""
    count = min(count, workload.batch_size, len(workload.calibration))
    return workload.task.inputs(workload.calibration.subset(range(count)).batch)


def model_outputs(model: nn.Module, inputs: Inputs) -> tuple[float, ...]:
    """What the model gives for `inputs` [n, ...], in eight numbers per sample of each tensor of its
    outputs: sums with fixed factors. Rounding moves them as little as the outputs; another forward
    moves them."""
    with torch.no_grad(), torch_threads(1):
        leaves = [leaf for leaf in tree_leaves(call(model, inputs)) if isinstance(leaf, Tensor)]
    count, values = count_samples(inputs), []
    for leaf in leaves:
        flat = leaf.double().reshape(count if leaf.dim() and len(leaf) == count else 1, -1)
        flat = torch.nan_to_num(flat, posinf=0.0, neginf=0.0)
        places = torch.arange(1, flat.shape[1] + 1, dtype=torch.float64)
        sums = [flat @ torch.sin(k * places) / len(places) ** 0.5 for k in range(1, _SUMS + 1)]
        values += torch.stack(sums, 1).flatten().tolist()
    return tuple(float(f"{value:.7g}") for value in values)


def data_fingerprint(dataset: TensorDataset) -> str:
    """SHA-256 over all its tensors, such as inputs and labels; 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in dataset.named():
        _update(digest, name, tensor)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, name: str, tensor: torch.Tensor) -> None:
    digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().tobytes())
