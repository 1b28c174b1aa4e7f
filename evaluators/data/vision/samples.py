"""Samples that begin with an image file, decoded as they are read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data.dataset import Batch, Dataset, TensorDataset
from apportion.evaluators.data.images import check_image


class ImageSamples(Dataset):
    """A batch is a tuple of tensors, the images first; all samples have the same shapes."""

    @abstractmethod
    def file(self, index: int) -> str:
        """The image of a sample."""

    @abstractmethod
    def sample(self, index: int) -> tuple[Tensor, ...]:
        """One sample, its image first. Raises DataError, with the file."""

    def look(self, index: int) -> None:
        """Look at the files of a sample, as cheaply as finds those that are broken. Raises
        DataError."""
        check_image(self.file(index))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for start in range(0, len(self), batch_size):
            yield self.subset(range(start, min(start + batch_size, len(self)))).batch

    def subset(self, indices: Sequence[int], progress: Progress = silent) -> TensorDataset:
        found = []
        for done, index in enumerate(indices, 1):
            found.append(self.sample(int(index)))
            progress("read images", done, len(indices))
        return TensorDataset(tuple(map(torch.stack, zip(*found, strict=True))))

    def check(self, indices: Sequence[int], progress: Progress = silent) -> None:
        for done, index in enumerate(indices, 1):
            self.look(int(index))
            if done % 100 == 0 or done == len(indices):
                progress("look at images", done, len(indices))
