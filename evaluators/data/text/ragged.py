"""Samples of different lengths, kept without padding: it is added to what is handed out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data.dataset import Batch, Dataset, TensorDataset


@dataclass(frozen=True)
class Ragged:
    """A sequence for each sample.

    Args:
        values: all of them, one after the other [total, ...].
        starts: where each begins, and where the last ends [N + 1].
        width: what they are padded to, on the right.
        pad: what with.
        dtype: of the tensors handed out.
    """

    values: np.ndarray
    starts: np.ndarray
    width: int
    pad: int = 0
    dtype: torch.dtype = torch.int64

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[Any]],
        kind: type[np.generic],
        width: int,
        pad: int = 0,
        dtype: torch.dtype = torch.int64,
    ) -> Ragged:
        """From a sequence for each sample.

        Args:
            rows: the sequences.
            kind: the numpy type that they are kept as.
            width: to which they are padded when they are read.
            pad: with what.
            dtype: of what is read.
        """
        starts = np.cumsum([0, *map(len, rows)])
        parts = [np.asarray(row, dtype=kind) for row in rows if len(row)]
        values = np.concatenate(parts) if parts else np.zeros(0, dtype=kind)
        return cls(values, starts, width, pad, dtype)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def padded(self, indices: Sequence[int]) -> Tensor:
        """Of these samples [n, width, ...]."""
        shape = (len(indices), self.width, *self.values.shape[1:])
        made = np.full(shape, self.pad, dtype=self.values.dtype)
        for row, index in enumerate(indices):
            found = self.values[self.starts[index] : self.starts[index + 1]]
            made[row, : len(found)] = found
        return torch.from_numpy(made).to(self.dtype)


Fields = dict[str, Any]
"""A dict of `Ragged`, of tensors [N, ...], and of such dicts."""


@dataclass(frozen=True)
class RaggedDataset(Dataset):
    """Samples whose fields are padded as they are read. A batch is a dict of tensors."""

    fields: Fields

    def __len__(self) -> int:
        return len(next(iter(_leaves(self.fields))))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for start in range(0, len(self), batch_size):
            yield self.subset(range(start, min(start + batch_size, len(self)))).batch

    def subset(self, indices: Sequence[int], progress: Progress = silent) -> TensorDataset:  # noqa: ARG002
        # in memory already: nothing to report
        chosen = torch.as_tensor(np.asarray(indices, dtype=np.int64))

        def cut(leaf: Ragged | Tensor) -> Tensor:
            return leaf.padded(indices) if isinstance(leaf, Ragged) else leaf[chosen]

        return TensorDataset(_changed(self.fields, cut))


def values(dataset: Dataset, *path: str) -> np.ndarray | Tensor | None:
    """All values of one field of a data set in memory, padding left out where it is kept without;
    None where the data set has no such field, or is not in memory."""
    found: Any = (
        dataset.fields
        if isinstance(dataset, RaggedDataset)
        else dataset.batch
        if isinstance(dataset, TensorDataset)
        else None
    )
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found.values if isinstance(found, Ragged) else found


def _leaves(fields: Fields) -> Iterator[Ragged | Tensor]:
    for value in fields.values():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield value


def _changed(fields: Fields, change: Callable[[Ragged | Tensor], Tensor]) -> Batch:
    return {
        name: _changed(value, change) if isinstance(value, dict) else change(value)
        for name, value in fields.items()
    }
