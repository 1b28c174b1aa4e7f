"""Images with a label each, in memory or read as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apportion.compressors.errors import DataError
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data.dataset import Batch, Dataset, TensorDataset
from apportion.evaluators.data.images import ImageFiles


class TensorSplit(TensorDataset):
    """Images in memory: inputs float32 [N, C, H, W], labels int64 [N]; a batch is both in a
    tuple."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        super().__init__((inputs, labels))

    @property
    def inputs(self) -> Tensor:
        inputs: Tensor = self.batch[0]
        return inputs

    @property
    def labels(self) -> Tensor:
        labels: Tensor = self.batch[1]
        return labels

    def subset(self, indices: Sequence[int], progress: Progress = silent) -> TensorSplit:
        return TensorSplit(*super().subset(indices, progress).batch)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        yield from (("inputs", self.inputs), ("labels", self.labels))

    def label_range(self) -> tuple[int, int]:
        """The lowest and the highest label."""
        return int(self.labels.min()), int(self.labels.max())


@dataclass(frozen=True)
class DatasetSplit(Dataset):
    """A torchvision dataset (with `targets`, the labels of all its images), decoded as it is
    read. A batch is (inputs float32 [n, C, H, W], normalised; labels int64 [n])."""

    dataset: Any
    source: str

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for start in range(0, len(self), batch_size):
            part = self.subset(range(start, min(start + batch_size, len(self))))
            yield part.batch

    def subset(self, indices: Sequence[int], progress: Progress = silent) -> TensorSplit:
        items = []
        try:
            for i in indices:
                items.append(self.dataset[int(i)])
                progress(f"read images: {self.source}", len(items), len(indices))
        except (
            OSError,
            ValueError,
            SyntaxError,
        ) as error:  # SyntaxError: what Pillow calls a broken PNG
            raise DataError(self.source, f"an image cannot be read ({error})") from error
        return TensorSplit(
            torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])
        )

    def label_range(self) -> tuple[int, int]:
        """The lowest and the highest label of all images; decodes none."""
        return min(self.dataset.targets), max(self.dataset.targets)

    def check(self, indices: Sequence[int], progress: Progress = silent) -> None:
        """Look at the files of these images without decoding them. Raises DataError."""
        if isinstance(self.dataset, ImageFiles):
            self.dataset.check(indices, progress)
