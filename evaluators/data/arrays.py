"""What the `labels` of a numpy archive must be, by the form of the task's batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from apportion.compressors.errors import DataError
from apportion.evaluators.data import forms


def numbers(values: np.ndarray, name: str, path: str) -> np.ndarray:
    """float32, finite. Raises DataError."""
    if values.ndim == 0 or values.dtype.kind not in "biuf":
        raise DataError(
            path, f"{name} must be numbers [N, ...], got {values.dtype} {list(values.shape)}"
        )
    made = values.astype(np.float32)
    if not np.isfinite(made).all():
        raise DataError(path, f"{name} hold NaN, infinity or numbers too large for float32")
    return made


def _targets(labels: np.ndarray, _side: tuple[int, ...], path: str) -> np.ndarray:
    if labels.ndim not in (1, 2) or labels.dtype.kind not in "biuf":
        raise _wrong(labels, "numbers [N] or [N, targets]", path)
    return numbers(labels, "labels", path)


def _pixels(labels: np.ndarray, side: tuple[int, ...], path: str) -> np.ndarray:
    if labels.ndim != 3 or labels.dtype.kind not in "iu" or labels.shape[1:] != side:
        needed = f"integers [N, {side[0]}, {side[1]}], a class for each pixel"
        raise _wrong(labels, needed, path)
    return labels.astype(np.int64)


def _boxes(labels: np.ndarray, _side: tuple[int, ...], path: str) -> np.ndarray:
    if labels.ndim != 3 or labels.dtype.kind not in "iuf" or labels.shape[2] != 5:
        needed = "numbers [N, boxes, 5] (class, x1, y1, x2, y2; class -1 is padding)"
        raise _wrong(labels, needed, path)
    return labels.astype(np.float32)


def _wrong(labels: np.ndarray, needed: str, path: str) -> DataError:
    return DataError(path, f"labels must be {needed}, got {labels.dtype} {list(labels.shape)}")


ARRAYS: Mapping[str, Callable[[np.ndarray, tuple[int, ...], str], np.ndarray]] = {
    forms.TARGETS: _targets,
    forms.PIXELS: _pixels,
    forms.BOXES: _boxes,
}
"""Form -> its check: given the labels, the images' height and width, and the file for messages, it
gives the labels in the type of the task's batches. Raises DataError."""
