"""COCO's mean average precision, by pycocotools (the extra `detection`)."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from torch import Tensor

from apportion.compressors.errors import ConfigurationError
from apportion.evaluators.tasks.vision.detections import MOST

_EVERY_SIZE = [[0.0, 1e10]]
"""Areas of boxes; the metrics of small and large boxes are not asked for, and would take most of
the time."""


def mean_average_precision(found: Tensor, there: Tensor) -> float:
    """The mean over the classes that occur, and over intersections over union of 0.50 to 0.95, in
    0..1; NaN where no box is there.

    Args:
        found: detections [n, k, 6] (class, score, x1, y1, x2, y2), class -1 for padding.
        there: boxes [n, M, 6] alike, whose scores say nothing.

    Raises:
        ConfigurationError: pycocotools is missing.
    """
    if not bool((there[..., 0] >= 0).any()):
        return float("nan")
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ConfigurationError(
            "task object-detection needs the package pycocotools: install apportion[detection]"
        ) from error
    boxes = [_annotations(there), _annotations(found)]
    classes = sorted({box["category_id"] for both in boxes for box in both})
    sets = []
    with redirect_stdout(io.StringIO()):  # it tells of every step
        for own in boxes:
            sets.append(COCO())
            sets[-1].dataset = {
                "images": [{"id": image} for image in range(len(there))],
                "categories": [{"id": number} for number in classes],
                "annotations": own,
            }
            sets[-1].createIndex()
        run = COCOeval(*sets, iouType="bbox")
        run.params.areaRng, run.params.areaRngLbl = _EVERY_SIZE, ["all"]
        run.params.maxDets = [MOST]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"]  # -1 for a class without boxes
    return float(precision[precision > -1].mean())


def _annotations(sets: Tensor) -> list[dict[str, Any]]:
    """As COCO's files have them: corner, width and height."""
    values = sets.detach().cpu().float().numpy()
    made: list[dict[str, Any]] = []
    for image, at in zip(*np.nonzero(values[..., 0] >= 0), strict=True):
        kind, score, x1, y1, x2, y2 = map(float, values[image, at])
        box = [x1, y1, x2 - x1, y2 - y1]
        made.append(
            {
                "id": len(made) + 1,  # to pycocotools, 0 is none
                "image_id": int(image),
                "category_id": int(kind),
                "score": score,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
        )
    return made
