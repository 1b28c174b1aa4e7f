"""Images with boxes, fitted into a square as they are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from apportion.compressors.errors import DataError
from apportion.evaluators.data import forms
from apportion.evaluators.data.dataset import Splits
from apportion.evaluators.data.images import read_image
from apportion.evaluators.data.registry import Context, reads
from apportion.evaluators.data.vision.annotations import Annotated, coco, yolo
from apportion.evaluators.data.vision.config import BoxesData
from apportion.evaluators.data.vision.samples import ImageSamples


@dataclass(frozen=True)
class Boxes(ImageSamples):
    """A batch is (images float32 [n, 3, size, size], boxes float32 [n, most, 5])."""

    items: tuple[Annotated, ...]
    config: BoxesData
    most: int

    def __len__(self) -> int:
        return len(self.items)

    def file(self, index: int) -> str:
        return str(self.items[index].path)

    def sample(self, index: int) -> tuple[Tensor, ...]:
        item, boxes = self.items[index], torch.full((self.most, 5), -1.0)
        image, factors = _fitted(item, self.config)
        if item.boxes:
            found = torch.tensor(item.boxes)
            found[:, 1:] *= torch.tensor(factors)
            boxes[: len(found)] = found
        return image, boxes


@reads(BoxesData)
def read_boxes(config: BoxesData, context: Context) -> Splits:
    if context.form != forms.BOXES:
        raise DataError(
            "workload.data.kind", f"boxes are not what task {context.task} takes; detectors do"
        )
    parts = {"calibration": config.calibration, "test": config.test, "train": config.train}
    found = {part: _found(path, config, part) for part, path in parts.items() if path is not None}
    most = max(1, *(len(item.boxes) for items in found.values() for item in items))
    made = {part: Boxes(tuple(items), config, most) for part, items in found.items()}
    return Splits(made["calibration"], made["test"], made.get("train"))


def _found(path: Path, config: BoxesData, part: str) -> list[Annotated]:
    where = f"workload.data.{part}"
    return yolo(path, where) if path.is_dir() else coco(path, config.images, where)


def _fitted(item: Annotated, config: BoxesData) -> tuple[Tensor, tuple[float, ...]]:
    """The image [3, size, size], and what its boxes x1, y1, x2, y2 are multiplied by."""
    image, _ = read_image(str(item.path))
    ratio = min(config.size / image.width, config.size / image.height)
    width, height = max(1, int(image.width * ratio)), max(1, int(image.height * ratio))
    square = np.full((config.size, config.size, 3), config.pad, dtype=np.uint8)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    square[:height, :width] = np.asarray(resized)
    if config.order == "bgr":
        square = square[..., ::-1]
    values = torch.from_numpy(square.copy()).permute(2, 0, 1).float() / config.scale
    values = (values - torch.tensor(config.mean)[:, None, None]) / torch.tensor(config.std)[
        :, None, None
    ]
    whole = (1, 1) if item.relative else (image.width, image.height)
    across, down = width / whole[0], height / whole[1]
    return values.contiguous(), (across, down, across, down)
