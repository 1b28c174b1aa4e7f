"""Which of the model's classes each class folder is, and whether the model agrees."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import torch
from torch import nn

from apportion.compressors.errors import DataError
from apportion.compressors.progress import Progress
from apportion.evaluators.workloads.data import Split
from apportion.evaluators.workloads.images import ImageFolder, some

log = logging.getLogger(__name__)

_FIRST, _MOST = 128, 1024
"""Test images that the model is tried on at first, and at most."""
_ENOUGH = 100
"""With fewer, nothing can be said of chance."""
_SURE = 2.33
"""Standard deviations above chance: exceeded by chance once in a hundred times."""


def number_classes(folder: ImageFolder, names: list[str] | None, outputs: int) -> ImageFolder:
    """Labels as the model numbers its classes: by its own names for them, where it has names and
    the folders bear them; by index, where the folders are numbers and fewer than its `outputs`;
    in alphabetical order elsewhere, which is torchvision's."""
    classes = folder.classes
    if names is not None and (by_name := _by_name(classes, names)) is not None:
        return folder.labelled(by_name)
    numbers = {name: int(name) for name in classes if name.isdecimal()}
    if len(set(numbers.values())) == len(classes):
        if len(classes) < outputs:
            return folder.labelled(numbers)
        if sorted(numbers, key=numbers.__getitem__) != classes:
            log.warning(
                "%s: its classes are numbered in alphabetical order (%s), as torchvision's "
                "ImageFolder does",
                folder.source,
                some(classes),
            )
    elif len(classes) < outputs:
        log.warning(
            "%s: %d class folders for a model of %d classes are taken for its first ones: name "
            "folders by the model's class names, or by index (0..%d)",
            folder.source,
            len(classes),
            outputs,
            outputs - 1,
        )
    return folder


def _by_name(classes: list[str], names: list[str]) -> dict[str, int] | None:
    """Class folder -> index in `names`, if every folder is one of them, and no two the same."""
    known: dict[str, set[int]] = {}
    for index, name in enumerate(names):
        # Hugging Face's labels of ImageNet are lists of synonyms
        for each in {name, *name.split(",")}:
            known.setdefault(_plain(each), set()).add(index)
    found = {folder: known.get(_plain(folder), set()) for folder in classes}
    if any(len(places) != 1 for places in found.values()):
        return None
    labels = {folder: places.pop() for folder, places in found.items()}
    return labels if len(set(labels.values())) == len(labels) else None


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def check_better_than_chance(
    model: nn.Module, test: Split, name: str, progress: Progress | None = None
) -> None:
    """Raises DataError where the dense model knows no more of the test images' labels than chance:
    as many as if its answers, each as often as it gives it, were handed out at random. Nothing is
    said where there are fewer than a hundred images, or all have one label."""
    order = np.random.default_rng(0).permutation(len(test))[:_MOST]
    labels: list[int] = []
    answers: list[int] = []
    for at in range(0, len(order), _FIRST):
        part = test.subset(order[at : at + _FIRST].tolist())
        with torch.no_grad():
            answers += model(part.inputs).argmax(1).tolist()
        labels += part.labels.tolist()
        right = sum(map(int.__eq__, labels, answers))
        expected = _by_chance(labels, answers)
        spread = (expected * (1 - expected / len(labels))) ** 0.5
        if right > expected + _SURE * spread:
            return
        if progress:
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
