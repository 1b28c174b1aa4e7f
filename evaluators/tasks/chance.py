"""Whether a classifier knows more of the test labels than chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from apportion.compressors.errors import DataError
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data.dataset import Batch, Dataset

Answer = Callable[[Batch], tuple[Tensor, Tensor]]
_FIRST, _MOST = 128, 1024
"""Test samples that the model is tried on at first, and at most."""
_ENOUGH = 100
"""With fewer, nothing can be said of chance."""
_SURE = 2.33
"""Standard deviations above chance: exceeded by chance once in a hundred times."""


def check_better_than_chance(
    answer: Answer,
    test: Dataset,
    name: str,
    progress: Progress = silent,
    samples: str = "images",
) -> None:
    """Whether the dense model knows more of the test labels than chance: as many as if its answers,
    each as often as it gives it, were handed out at random. Nothing is said where there are fewer
    than a hundred samples, or all have one label.

    Args:
        answer: gives the labels [n] of a batch, and the model's answers.
        test: the data.
        name: the model's, for messages.
        progress: told of samples.
        samples: what they are, for messages.

    Raises:
        DataError: it does not.
    """
    order = np.random.default_rng(0).permutation(len(test))[:_MOST]
    labels: list[int] = []
    answers: list[int] = []
    for at in range(0, len(order), _FIRST):
        with torch.no_grad():
            right_ones, given = answer(test.subset(order[at : at + _FIRST].tolist()).batch)
        labels += right_ones.tolist()
        answers += given.tolist()
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
        f"the dense model {name!r} is right on {right} of {len(labels)} test {samples}, where "
        f"chance would be on {expected:.0f}: the labels may not be numbered as the model's classes "
        "are (name them by the model's class names or by index), the inputs not prepared as in its "
        "training (images: mean, std; texts: tokenizer), or the weights not those of a trained "
        "model",
    )


def _by_chance(labels: list[int], answers: list[int]) -> float:
    """Right answers to be expected if they had nothing to do with the labels (Cohen 1960)."""
    asked, given = Counter(labels), Counter(answers)
    return sum(asked[label] * given[label] for label in asked) / len(labels)
