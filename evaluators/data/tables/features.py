"""Rows of numbers with a class or numbers that are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from apportion.compressors.errors import DataError
from apportion.evaluators.data import forms
from apportion.evaluators.data.dataset import TensorDataset
from apportion.evaluators.data.registry import Context
from apportion.evaluators.data.tables.columns import read_columns
from apportion.evaluators.data.tables.labels import number_classes, numbers

Columns = Sequence[str | int]


def read_features(
    kind: str, files: Mapping[str, str], features: Columns, labels: Columns, context: Context
) -> dict[str, TensorDataset]:
    """Part (calibration, test, train) -> (features float32 [N, d], classes int64 [N]), or
    (features, targets float32 [N, k]) for tasks that ask for these.

    Args:
        kind: csv, jsonl or parquet.
        files: of each part, or URLs.
        features: the columns that the model takes, in its order, as they are.
        labels: the column of classes, or those of targets.
        context: says what the task asks for, and how the model calls its classes.

    Raises:
        DataError: the task takes no numbers, a file cannot be read, or lacks a column, or a row has
            no number in one of them, or no class that is known.
    """
    _check_task(kind, len(labels), context)
    rows = {
        part: read_columns(kind, file, [*features, *labels], part) for part, file in files.items()
    }

    def table(part: str, names: Columns, columns: list[list[Any]]) -> Tensor:
        made = [
            torch.tensor(numbers(part, files[part], name, column), dtype=torch.float32)
            for name, column in zip(names, columns, strict=True)
        ]
        return torch.stack(made, 1)

    count = len(features)
    inputs = {part: table(part, features, columns[:count]) for part, columns in rows.items()}
    if context.form:
        wanted = {part: table(part, labels, columns[count:]) for part, columns in rows.items()}
    else:
        said = {part: columns[count] for part, columns in rows.items()}
        classes = number_classes(files, said, context.classes)
        wanted = {part: torch.tensor(found) for part, found in classes.items()}
    return {part: TensorDataset((inputs[part], wanted[part])) for part in files}


def _check_task(kind: str, labels: int, context: Context) -> None:
    if context.form not in ("", forms.TARGETS):
        raise DataError(
            "workload.data.features",
            f"{kind} with features has rows of numbers, which task {context.task} does not take; "
            "regression, multi-label and image-classification (for classes of any rows) do",
        )
    if not labels or (not context.form and labels != 1):
        wanted = "1 column or more" if context.form else "1 column of classes"
        raise DataError(
            "workload.data.label", f"task {context.task} needs {wanted}, not {labels or 'none'}"
        )
