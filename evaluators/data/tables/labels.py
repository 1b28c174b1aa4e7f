"""Classes and numbers of labelled rows."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apportion.compressors.errors import DataError, nearest
from apportion.db.documents.text import meant

log = logging.getLogger(__name__)

_LARGEST = float(np.finfo(np.float32).max)
_NAMELESS = re.compile(r"label_\d+")
"""What configurations of Hugging Face call classes that were given no names."""


def number_classes(
    files: Mapping[str, str], parts: Mapping[str, Sequence[Any]], names: Sequence[str] | None
) -> dict[str, list[int]]:
    """The labels of every part (calibration, test, train; from its file) as numbers: as they are,
    where all are whole numbers; by the model's `names` for its classes, where it has them; else the
    names of the calibration and training rows in alphabetical order. Raises DataError for a class
    that is not known."""
    said = {part: [_text(label) for label in labels] for part, labels in parts.items()}
    if all(text.isdecimal() for labels in said.values() for text in labels):
        return {part: [int(text) for text in labels] for part, labels in said.items()}
    known = _of_the_model(said, names)
    if known is None:
        own = {text for part, labels in said.items() if part != "test" for text in labels}
        known = {name: number for number, name in enumerate(sorted(own))}
    made: dict[str, list[int]] = {}
    for part, labels in said.items():
        for row, text in enumerate(labels):
            if text not in known:
                meant = nearest(text, known)
                raise DataError(
                    f"workload.data.{part}",
                    f"{files[part]}: row {row + 1} has the unknown class {text!r:.60}"
                    + (f"; did you mean {meant!r}?" if meant else "")
                    + f" (known: {', '.join(sorted(known)[:20])})",
                )
        made[part] = [known[text] for text in labels]
    return made


def _of_the_model(
    said: Mapping[str, Sequence[str]], names: Sequence[str] | None
) -> dict[str, int] | None:
    """Name -> number as the model has it, if it has names and some label is one of them."""
    if names is None or all(_NAMELESS.fullmatch(name.lower()) for name in names):
        return None
    every = {text for labels in said.values() for text in labels}
    exact = {name: number for number, name in enumerate(names)}
    if every & set(exact):
        return exact
    lowered = {name.lower(): number for number, name in enumerate(names)}
    found = {text: lowered[text.lower()] for text in every if text.lower() in lowered}
    if found:
        return found
    log.warning(
        "workload.data.label: no label is one of the model's classes (%s); they are numbered in "
        "alphabetical order: %s",
        ", ".join(names[:5]),
        ", ".join(sorted(every)[:5]),
    )
    return None


def numbers(part: str, file: str, column: str | int, values: Sequence[Any]) -> list[float]:
    """The values of a column of numbers that float32 can hold. Raises DataError."""
    made = []
    for row, value in enumerate(values):
        found = _number(value)
        if not abs(found) <= _LARGEST:
            hint = meant(value.strip()) if isinstance(value, str) else ""
            hint = hint or " that float32 holds" * (abs(found) > _LARGEST)
            raise DataError(
                f"workload.data.{part}",
                f"{file}: row {row + 1} has {value!r:.60} in column {column!r}; a number is "
                f"needed{hint}",
            )
        made.append(found)
    return made


def _number(value: Any) -> float:
    """NaN for what is none."""
    try:
        return math.nan if isinstance(value, str) and "_" in value else float(value)
    except (TypeError, ValueError):
        return math.nan


def _text(label: Any) -> str:
    """1, 1.0 and "1" are one class."""
    return str(int(label) if isinstance(label, float) and label.is_integer() else label).strip()
