"""Numpy archives for tasks beyond classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from apportion.compressors.errors import DataError
from apportion.evaluators.data.config import NpzData
from apportion.evaluators.data.dataset import Splits
from apportion.evaluators.data.load import load_splits
from apportion.evaluators.data.registry import Context
from apportion.evaluators.tasks.registry import make_task


def read(folder: Path, task: str, labels: np.ndarray) -> Splits:
    file = folder / "data.npz"
    np.savez(file, images=np.zeros((3, 4, 6), dtype=np.uint8), labels=labels)
    given = NpzData(kind="npz", calibration=str(file), test=str(file), mean=(0.0,), std=(1.0,))
    return load_splits(given, Context("mine", task, make_task(task).form))


@pytest.mark.parametrize(
    ("task", "labels", "kind"),
    [
        ("regression", np.arange(6.0).reshape(3, 2), torch.float32),
        ("multi-label", np.array([[0, 1], [1, 1], [0, 0]]), torch.float32),
        ("semantic-segmentation", np.full((3, 4, 6), 255, dtype=np.uint8), torch.int64),
        ("object-detection", np.full((3, 2, 5), -1), torch.float32),
        ("image-classification", np.array([2, 0, 1]), torch.int64),
    ],
)
def test_labels_are_what_the_task_asks_for(
    tmp_path: Path, task: str, labels: np.ndarray, kind: torch.dtype
) -> None:
    images, found = read(tmp_path, task, labels).test.subset([0, 1, 2]).batch
    assert images.shape == (3, 1, 4, 6)
    assert found.dtype == kind
    assert found.tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("task", "labels", "said"),
    [
        ("regression", np.zeros((3, 2, 2)), r"numbers \[N\] or \[N, targets\]"),
        ("regression", np.array([0.0, np.nan, 1.0]), "NaN"),
        ("semantic-segmentation", np.zeros((3, 6, 4), dtype=int), r"integers \[N, 4, 6\]"),
        ("object-detection", np.zeros((3, 2, 4)), r"\[N, boxes, 5\]"),
        ("image-classification", np.zeros((3, 2)), r"integers \[N\]"),
        ("regression", np.zeros((2, 2)), "3 images and 2 labels"),
        ("text-classification", np.zeros(3, dtype=int), "does not take"),
    ],
)
def test_other_labels_are_refused(tmp_path: Path, task: str, labels: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path, task, labels)


def test_inputs_of_any_shape_are_taken_as_they_are(tmp_path: Path) -> None:
    file, inputs = tmp_path / "data.npz", np.arange(12.0).reshape(3, 4)
    np.savez(file, inputs=inputs, labels=np.arange(3.0))
    given = NpzData(kind="npz", calibration=str(file), test=str(file))
    found = load_splits(given, Context("mine", "regression", make_task("regression").form))
    assert found.test.subset([2, 0]).batch[0].tolist() == inputs[[2, 0]].tolist()
    np.savez(file, inputs=np.full((3, 4), np.inf), labels=np.arange(3.0))
    with pytest.raises(DataError, match="inputs hold NaN, infinity"):
        load_splits(given, Context("mine", "regression", make_task("regression").form))
