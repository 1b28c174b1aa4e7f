"""Whether a classifier knows more of the test labels than chance."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import nn

from apportion.compressors.errors import DataError
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data.dataset import Dataset

_FIRST, _MOST = 128, 1024
"""Test images that the model is tried on at first, and at most."""
_ENOUGH = 100
"""With fewer, nothing can be said of chance."""
_SURE = 2.33
"""Standard deviations above chance: exceeded by chance once in a hundred times."""


def check_better_than_chance(
    model: nn.Module, test: Dataset, name: str, progress: Progress = silent
) -> None:
    """Raises DataError where the dense model knows no more of the test images' labels than chance:
    as many as if its answers, each as often as it gives it, were handed out at random. Nothing is
    said where there are fewer than a hundred images, or all have one label."""
    order = np.random.default_rng(0).permutation(len(test))[:_MOST]
    labels: list[int] = []
    answers: list[int] = []
    for at in range(0, len(order), _FIRST):
        inputs, given = test.subset(order[at : at + _FIRST].tolist()).batch
        with torch.no_grad():
            answers += model(inputs).argmax(1).tolist()
        labels += given.tolist()
        right = sum(map(int.__eq__, labels, answers))
        expected = _by_chance(labels, answers)
        spread = (expected * (1 - expected / len(labels))) ** 0.5
        if right > expected + _SURE * spread:
            return
        progress("try the dense model", len(labels), len(order))
    if len(labels) < _ENOUGH or len(set(labels)) == 1:
        return
    raise DataError(
        "workload.data",
        f"the dense model {name!r} is right on {right} of {len(labels)} test images, where chance "
        f"would be on {expected:.0f}: the labels may not be numbered as the model's classes are "
        "(class folders: name them by the model's class names or by index), the inputs not "
        "normalised as in its training (mean, std), or the weights not those of a trained model",
    )


def _by_chance(labels: list[int], answers: list[int]) -> float:
    """Right answers to be expected if they had nothing to do with the labels (Cohen 1960)."""
    asked, given = Counter(labels), Counter(answers)
    return sum(asked[label] * given[label] for label in asked) / len(labels)
