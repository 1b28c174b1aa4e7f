"""Data: samples in one fixed order, handed out in batches.

A batch is a tree of tensors (a tensor, or a tuple, list or dict of trees) whose first dimensions
are all the number of samples. What the tensors mean is the task's business alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apportion.compressors.errors import DataError
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data import trees

Batch = Any
"""A tree of tensors [n, ...]."""


class Dataset(ABC):
    """Samples in one fixed order."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All samples in order, `batch_size` at a time; the last batch holds what is left."""

    @abstractmethod
    def subset(self, indices: Sequence[int], progress: Progress = silent) -> TensorDataset:
        """These samples, read into memory, in the order given. Raises DataError for one that cannot
        be read."""

    def check(self, indices: Sequence[int], progress: Progress = silent) -> None:  # noqa: B027
        """Look at these samples without reading them whole, where that can be done. Raises
        DataError for one that is broken."""


@dataclass(frozen=True)
class TensorDataset(Dataset):
    """Samples in memory: `batch` holds all of them. Raises DataError for what is no tree of tensors
    with one first dimension, at least 1."""

    batch: Batch

    def __post_init__(self) -> None:
        leaves = list(trees.named(self.batch))
        for name, leaf in leaves:
            if not isinstance(leaf, Tensor) or not leaf.dim():
                kind = f"a {type(leaf).__name__}" if not isinstance(leaf, Tensor) else "one number"
                raise DataError(
                    "dataset", f"{name or 'the batch'} is {kind}; tensors [N, ...] are needed"
                )
        sizes = {name: len(leaf) for name, leaf in leaves}
        if len(set(sizes.values())) != 1 or not min(sizes.values()):
            found = ", ".join(f"{name or 'the batch'} {size}" for name, size in sizes.items())
            raise DataError(
                "dataset",
                "all tensors need one first dimension, the number of samples, at least 1; found "
                f"{found or 'no tensor'}",
            )

    def __len__(self) -> int:
        return len(trees.tensors(self.batch)[0])

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for start in range(0, len(self), batch_size):
            yield trees.cut(self.batch, slice(start, start + batch_size))

    def subset(self, indices: Sequence[int], progress: Progress = silent) -> TensorDataset:  # noqa: ARG002
        # in memory already: nothing to report
        return TensorDataset(
            trees.cut(self.batch, torch.as_tensor(np.asarray(indices, dtype=np.int64)))
        )

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with a name that stays, for fingerprints."""
        yield from sorted(trees.named(self.batch), key=lambda item: item[0])


def in_memory(dataset: Dataset, batch: Batch) -> Batch:
    """All samples where they are in memory; else those of `batch`."""
    return dataset.batch if isinstance(dataset, TensorDataset) else batch


@dataclass(frozen=True)
class Splits:
    """Everything that a data source offers; `calibration` before its subset is drawn, `train` None
    for none of its own."""

    calibration: Dataset
    test: Dataset
    train: Dataset | None = None


def draw(
    dataset: Dataset, count: int, generator: np.random.Generator, progress: Progress = silent
) -> TensorDataset:
    """A random subset of `count` samples, in random order: never the first ones of a source that
    may be sorted by class."""
    return dataset.subset(generator.permutation(len(dataset))[:count].tolist(), progress)
