"""Detections: sets of boxes with classes and scores, one set per image, and how far two are from
each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MOST = 100
"""Detections per image that count, those of the highest scores, as COCO counts them."""
_COLUMNS = 6
KEYS = ("boxes", "scores", "labels")

Found = Sequence[dict[str, Tensor]]
"""An image each, as torchvision's models give them: boxes [k, 4] (x1, y1, x2, y2 in pixels), scores
[k] in 0..1, labels [k]."""


def table(found: Found) -> Tensor:
    """float64 [n, 100, 6]: class, score, x1, y1, x2, y2 by falling score; class -1 is padding."""
    rows = []
    for one in found:
        order = torch.argsort(one["scores"], descending=True, stable=True)[:MOST]
        parts = [one["labels"][:, None], one["scores"][:, None], one["boxes"]]
        row = torch.cat([part.double() for part in parts], 1)[order]
        rows.append(torch.cat([row, _padding(row, MOST - len(row))]))
    return torch.stack(rows)


def of_truth(boxes: Tensor) -> Tensor:
    """float64 [n, M, 6]: what is there, as certain detections, from boxes [n, M, 5] (class, x1, y1,
    x2, y2)."""
    boxes = boxes.double()
    return torch.cat([boxes[..., :1], torch.ones_like(boxes[..., :1]), boxes[..., 1:]], -1)


def difference(one: Tensor, other: Tensor) -> Tensor:
    """float64 [n], at least 0, 0 for equal sets: the weight of the symmetric difference of two sets
    of detections [n, k, 6], each detection weighing its score. Two of one class have in common
    the lower of their scores times their intersection over union; which two are compared is the
    assignment with most in common, one to one, as in metrics for tracking (Rahmathullah et al.
    2017). Gradients go through boxes and scores."""
    return torch.stack([_difference(*pair) for pair in zip(one, other, strict=True)])


def _difference(one: Tensor, other: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    one, other = one[one[:, 0] >= 0].double(), other[other[:, 0] >= 0].double()
    same = one[:, None, 0] == other[None, :, 0]
    lower = torch.minimum(one[:, None, 1], other[None, :, 1])
    common = torch.where(same, lower * _overlap(one[:, 2:], other[:, 2:]), 0.0)
    rows, columns = linear_sum_assignment(np.asarray(common.detach().cpu()), maximize=True)
    left = torch.ones(len(one), dtype=torch.bool, device=one.device)
    right = torch.ones(len(other), dtype=torch.bool, device=one.device)
    left[rows], right[columns] = False, False
    pairs = one[rows, 1] + other[columns, 1] - 2 * common[rows, columns]
    return (pairs.sum() + one[left, 1].sum() + other[right, 1].sum()).clamp_min(0)


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union [a, b] of boxes [a, 4] and [b, 4]; 1 for equal ones without area."""
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    both = (high - low).clamp_min(0).prod(2)
    union = _area(one)[:, None] + _area(other)[None] - both
    equal = (one[:, None] == other[None]).all(2)
    return torch.where(union > 0, both / union.clamp_min(1e-12), equal.double())


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(1)


def _padding(like: Tensor, count: int) -> Tensor:
    made = torch.zeros(count, _COLUMNS, dtype=like.dtype, device=like.device)
    made[:, 0] = -1
    return made
