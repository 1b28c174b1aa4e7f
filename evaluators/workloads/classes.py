"""Which of the model's classes each class folder is."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import nn

from apportion.evaluators.data.dataset import Dataset, Splits
from apportion.evaluators.data.images import ImageFolder, some
from apportion.evaluators.data.readers import DatasetSplit
from apportion.evaluators.models.build import class_names

log = logging.getLogger(__name__)


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


def numbered(splits: Splits, model: nn.Module, name: str) -> Splits:
    """Image folders with the labels that the model (eval mode) has for their classes. Raises
    DataError."""
    names = class_names(name, model)

    def relabel(split: Dataset) -> Dataset:
        if not isinstance(split, DatasetSplit):
            return split
        with torch.no_grad():
            outputs = model(split.subset([0]).inputs)
        if not isinstance(outputs, torch.Tensor) or outputs.dim() != 2:
            return split  # what the task's own check refuses
        return replace(split, dataset=number_classes(split.dataset, names, outputs.shape[1]))

    train = None if splits.train is None else relabel(splits.train)
    return Splits(relabel(splits.calibration), relabel(splits.test), train)
