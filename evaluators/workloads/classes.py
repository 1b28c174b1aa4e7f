"""Which of the model's classes each class of image files is."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import nn

from apportion.compressors.errors import DataError
from apportion.evaluators.data.class_names import by_name
from apportion.evaluators.data.dataset import Dataset, Splits
from apportion.evaluators.data.images import ImageFiles, some
from apportion.evaluators.data.splits import DatasetSplit
from apportion.evaluators.models.build import class_names

log = logging.getLogger(__name__)


def number_classes(files: ImageFiles, names: list[str] | None, outputs: int) -> ImageFiles:
    """Labels as the model numbers its classes: by its own names for them, where it has names and
    the files' are among them; by index, where the files' are numbers and fewer than its `outputs`;
    elsewhere as they are, which is torchvision's alphabetical order for folders."""
    classes = files.classes
    if names is not None and (found := by_name(classes, names)) is not None:
        return files.labelled(found)
    numbers = {name: int(name) for name in classes if name.isdecimal()}
    if len(set(numbers.values())) == len(classes):
        if len(classes) < outputs:
            return files.labelled(numbers)
        if sorted(numbers, key=numbers.__getitem__) != classes:
            log.warning(
                "%s: its classes are numbered in alphabetical order (%s), as torchvision's "
                "ImageFolder does",
                files.source,
                some(classes),
            )
    elif len(classes) < outputs:
        log.warning(
            "%s: %d classes for a model of %d are taken for its first ones: name them as the "
            "model does, or by index (0..%d)",
            files.source,
            len(classes),
            outputs,
            outputs - 1,
        )
    return files


def numbered(splits: Splits, model: nn.Module, name: str) -> Splits:
    """Image files with the labels that the model (eval mode) has for their classes. Raises
    DataError."""
    names = class_names(name, model)

    def relabel(split: Dataset) -> Dataset:
        if not isinstance(split, DatasetSplit):
            return split
        with torch.no_grad():
            outputs = model(split.subset([0]).inputs)
        if not isinstance(outputs, torch.Tensor) or outputs.dim() != 2:
            return split  # what the task's own check refuses
        made = number_classes(split.dataset, names, outputs.shape[1])
        _check_labels(made, outputs.shape[1], name)
        return replace(split, dataset=made)

    train = None if splits.train is None else relabel(splits.train)
    return Splits(relabel(splits.calibration), relabel(splits.test), train)


def _check_labels(files: ImageFiles, outputs: int, model: str) -> None:
    """Raises DataError, with the first file whose label is none of the model's `outputs`."""
    for file, name in files.files:
        if not 0 <= (label := files.labels[name]) < outputs:
            raise DataError(
                file,
                f"class {name!r} is output {label} for model {model!r}, which has 0..{outputs - 1}",
            )
