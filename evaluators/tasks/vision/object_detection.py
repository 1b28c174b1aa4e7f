"""Object detection: boxes with classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from apportion.compressors.errors import DataError, ModelError
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data import forms
from apportion.evaluators.data.dataset import Dataset, in_memory
from apportion.evaluators.tasks.task import Metric, Outputs, Task
from apportion.evaluators.tasks.vision import detections
from apportion.evaluators.tasks.vision.average_precision import mean_average_precision
from apportion.evaluators.tasks.vision.detections import KEYS, MOST, Found

Boxes = tuple[Tensor, Tensor]
"""Images float32 [n, C, H, W], and boxes float32 [n, M, 5]: class, x1, y1, x2, y2 in pixels; class
-1 is padding."""

_SOME, _FEW = 64, 8
"""Test images at most that the dense model is tried on, and how many at a time."""
_COLUMNS = 6


class ObjectDetection(Task):
    """Boxes with classes and scores. A batch is (images, boxes).

    The outputs are torchvision's: for each image a dict of `boxes`, `scores` and `labels`. A model
    that gives something else needs a subclass with a `detections` of its own; DenseDetection is
    for those with predictions at fixed places. The metric is COCO's mean average precision.

    Sets of detections have no likelihood. Their divergence and loss are the weight of what two sets
    do not have in common (detections.difference), in detections per image: 0 for equal sets, and
    above for boxes that move, scores that change, and objects that come or go."""

    metric = Metric("mAP", "", higher_is_better=True, tolerance=0.002, digits=".4f")
    kind = "object-detection"
    form = forms.BOXES
    auto = "AutoModelForObjectDetection"

    def inputs(self, batch: Boxes) -> Tensor:
        return batch[0]

    def detections(self, outputs: Outputs, batch: Boxes) -> Found:  # noqa: ARG002
        """A dict for each image, as torchvision's models give it: `boxes` [k, 4] (x1, y1, x2, y2 in
        pixels of the batch's images), `scores` [k] in 0..1, `labels` [k], the data's classes."""
        return outputs

    def loss(self, outputs: Outputs, batch: Boxes) -> Tensor:
        """How far the detections are from what is there."""
        found = self._table(outputs, batch)
        return detections.difference(found, detections.of_truth(batch[1]))

    def divergence(self, outputs: Outputs, dense: Outputs, batch: Boxes) -> Tensor:
        """How far the detections are from the dense model's."""
        return detections.difference(self._table(outputs, batch), self._table(dense, batch))

    def reference(self, outputs: Outputs, batch: Boxes) -> Tensor:
        """The detections that count, in one table [n, 100, 6]."""
        return self._table(outputs, batch)

    def error(self, outputs: Outputs, batch: Boxes) -> Tensor:
        """1 - the mean average precision of the image alone; 0 where no box is there."""
        found, there = self._table(outputs, batch), detections.of_truth(batch[1])
        pairs = zip(found, there, strict=True)
        values = [mean_average_precision(one[None], other[None]) for one, other in pairs]
        return torch.nan_to_num(1 - found.new_tensor(values)).clamp_min(0)

    def rows(self, outputs: Outputs, batch: Boxes) -> Tensor:
        """The detections and the boxes that are there: [n, 100 x 6 + M x 6]."""
        found, there = self._table(outputs, batch), detections.of_truth(batch[1])
        return torch.cat([found.flatten(1), there.flatten(1)], 1)

    def measure(self, rows: Tensor) -> float:
        # sorted, so that ties between images fall in one way whatever their order
        rows = rows[torch.from_numpy(np.lexsort(rows.cpu().numpy().T)).to(rows.device)]
        found, there = rows.split([MOST * _COLUMNS, rows.shape[1] - MOST * _COLUMNS], 1)
        shape = (len(rows), -1, _COLUMNS)
        return mean_average_precision(found.reshape(shape), there.reshape(shape))

    def distance(self, outputs: Outputs, dense: Outputs, batch: Boxes) -> Tensor:
        return self.divergence(outputs, dense, batch).mean()

    def check(
        self, outputs: Outputs, batch: Boxes, dataset: Dataset, what: str, model: str
    ) -> None:
        """Boxes in the shape they should have, and outputs that are detections."""
        boxes = batch[1]
        if boxes.dim() != 3 or boxes.shape[2] != 5:
            raise DataError(
                "workload.data",
                f"{what} boxes must be [N, M, 5] (class, x1, y1, x2, y2), got {list(boxes.shape)}",
            )
        boxes = in_memory(dataset, batch)[1]
        there = boxes[boxes[..., 0] >= 0]
        if bool((there[:, 3:] < there[:, 1:3]).any()):
            raise DataError(
                "workload.data", f"{what} boxes must be x1, y1, x2, y2 with x1 <= x2 and y1 <= y2"
            )
        if not _is_found(self.detections(outputs, batch)):
            raise ModelError(
                f"model {model!r} does not give a list of dicts with boxes, scores and labels as "
                "torchvision's detectors do; say in a Task of your own how its outputs are decoded "
                "(a subclass of apportion.evaluators.tasks.vision.dense_detection.DenseDetection "
                "with `detections`)"
            )

    def check_dense(
        self, model: nn.Module, test: Dataset, name: str, progress: Progress = silent
    ) -> None:
        """Some box of the first test images must be found."""
        rows, count = [], min(_SOME, len(test))
        for at in range(0, count, _FEW):
            batch = test.subset(range(at, min(at + _FEW, count))).batch
            with torch.no_grad():
                rows.append(self.rows(self.forward(model, batch), batch))
            value = self.measure(torch.cat(rows))
            if value > 0:
                return
            progress("try the dense model", at, count)
        if np.isnan(value):
            return
        raise DataError(
            "workload.data",
            f"the dense model {name!r} finds no box of {count} test images: the classes may not be "
            "numbered as the model's are (torchvision's COCO classes are 1..90, YOLO's 0..79), the "
            "images not prepared as in its training, or the weights not those of a trained model",
        )

    def _table(self, outputs: Outputs, batch: Boxes) -> Tensor:
        """Detections [n, 100, 6], of outputs or of a `reference`."""
        if isinstance(outputs, Tensor) and outputs.shape[1:] == (MOST, _COLUMNS):
            return outputs
        return detections.table(self.detections(outputs, batch))


def _is_found(outputs: object) -> bool:
    return isinstance(outputs, list | tuple) and all(
        isinstance(one, dict) and all(isinstance(one.get(key), Tensor) for key in KEYS)
        for one in outputs
    )
