"""COCO's mean average precision, by torchmetrics with pycocotools (the extra `detection`)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from apportion.compressors.errors import ConfigurationError


def mean_average_precision(found: Tensor, there: Tensor) -> float:
    """The mean over the classes that occur, and over intersections over union of 0.50 to 0.95, in
    0..1; NaN where no box is there.

    Args:
        found: detections [n, k, 6] (class, score, x1, y1, x2, y2), class -1 for padding.
        there: boxes [n, M, 6] alike, whose scores say nothing.

    Raises:
        ConfigurationError: torchmetrics or pycocotools is missing.
    """
    if not bool((there[..., 0] >= 0).any()):
        return float("nan")
    try:
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(box_format="xyxy", backend="pycocotools")
    except ImportError as error:  # torchmetrics says ModuleNotFoundError without pycocotools
        raise ConfigurationError(
            "task object-detection needs the packages torchmetrics and pycocotools: install "
            "apportion[detection]"
        ) from error
    metric.warn_on_many_detections = False
    metric.update(list(_dicts(found)), list(_dicts(there)))
    return float(metric.compute()["map"])


def _dicts(sets: Tensor) -> Iterator[dict[str, Tensor]]:
    for each in sets.detach().cpu():
        kept = each[each[:, 0] >= 0]
        yield {
            "boxes": kept[:, 2:].float(),
            "scores": kept[:, 1].float(),
            "labels": kept[:, 0].to(torch.int64),
        }
