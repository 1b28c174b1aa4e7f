"""Data that a program hands over: a torch DataLoader, a Dataset of ours, or any iterable of
batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from apportion.compressors.errors import DataError, first_line
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data import trees
from apportion.evaluators.data.dataset import Batch, Dataset, TensorDataset


@dataclass(frozen=True)
class LoaderDataset(Dataset):
    """The samples of a DataLoader whose data set has indices, in the order of those: batches are
    cut and collated anew, whatever order and size the loader has.

    Args:
        loader: gives data set and `collate_fn`.
        indices: those that its sampler gives, ascending.
        name: for messages.
    """

    loader: DataLoader[Any]
    indices: tuple[int, ...]
    name: str

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for start in range(0, len(self), batch_size):
            yield self._collated(range(start, min(start + batch_size, len(self))))

    def subset(self, indices: Sequence[int], progress: Progress = silent) -> TensorDataset:
        return TensorDataset(self._collated(indices, progress))

    def _collated(self, indices: Sequence[int], progress: Progress = silent) -> Batch:
        samples = []
        collate = self.loader.collate_fn
        try:
            for i in indices:
                samples.append(self.loader.dataset[self.indices[i]])
                progress(f"read samples: {self.name}", len(samples), len(indices))
            return collate(samples) if collate is not None else samples
        except Exception as error:  # the user's own code
            raise DataError(self.name, f"a sample cannot be read ({first_line(error)})") from error


def as_dataset(data: Any, name: str) -> Dataset:
    """`data` as samples in one order.

    Args:
        data: a Dataset of ours, as it is; a DataLoader, whose samples are read when they are
            needed; any other iterable of batches (trees of tensors [n, ...]), which is read now.
        name: what it is for: calibration, train or test.

    Raises:
        DataError: it is none of these, holds nothing, or its batches do not fit together.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
        return LoaderDataset(data, _indices(data, name), name)
    if not isinstance(data, Iterable):
        raise DataError(
            name,
            f"is a {type(data).__name__}; a DataLoader, an iterable of batches, or an "
            "apportion Dataset is needed",
        )
    batches = list(data)
    if not batches:
        raise DataError(name, "holds no batch")
    try:
        joined = trees.joined(batches)
    except Exception as error:  # of other structures or shapes, or no trees of tensors
        raise DataError(
            name, f"its batches do not go together as one ({first_line(error)})"
        ) from error
    return TensorDataset(joined)


def _indices(loader: DataLoader[Any], name: str) -> tuple[int, ...]:
    """What the loader's sampler gives: a part of the data set, perhaps."""
    given: list[int] = []
    for item in loader.batch_sampler if loader.batch_sampler is not None else loader.sampler:
        given.extend(item if isinstance(item, list | tuple) else [item])
    if not given:
        raise DataError(name, "holds no sample")
    return tuple(sorted(set(given)))
