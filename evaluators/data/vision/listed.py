"""Images that a csv file names, with a class or numbers each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from apportion.compressors.errors import DataError, DocumentError, nearest
from apportion.db.documents.csv_reader import csv_rows
from apportion.db.documents.text import number, read_text
from apportion.evaluators.data import forms
from apportion.evaluators.data.class_names import by_name
from apportion.evaluators.data.dataset import Dataset, Splits
from apportion.evaluators.data.images import ImageFiles, read_stored
from apportion.evaluators.data.registry import Context, reads
from apportion.evaluators.data.splits import DatasetSplit
from apportion.evaluators.data.vision.config import ImageListData
from apportion.evaluators.data.vision.samples import ImageSamples
from apportion.evaluators.data.vision.square import image_steps

_MOST = 1 << 30
"""Bytes of a file."""
_FLOAT32 = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Row:
    """Where it stands, for messages; the image; what stands in the columns of labels."""

    place: str
    image: str
    labels: tuple[str, ...]


Rows = Mapping[str, Sequence[Row]]
"""Part (calibration, test, train) -> its rows."""


@dataclass(frozen=True)
class ImageTargets(ImageSamples):
    """A batch is (images float32 [n, 3, size, size], targets float32 [n, k])."""

    images: tuple[str, ...]
    targets: Tensor
    config: ImageListData
    _said: set[str] = field(default_factory=set, compare=False)

    def __len__(self) -> int:
        return len(self.images)

    def file(self, index: int) -> str:
        return self.images[index]

    def sample(self, index: int) -> tuple[Tensor, ...]:
        image = read_stored(self.images[index], self._said)
        return image_steps(self.config)(image), self.targets[index]


@reads(ImageListData)
def read_list(config: ImageListData, context: Context) -> Splits:
    if context.form not in ("", forms.TARGETS):
        raise DataError(
            "workload.data.kind",
            f"imagelist has images with a class or numbers, which task {context.task} does not "
            "take",
        )
    given = {"calibration": config.calibration, "test": config.test, "train": config.train}
    rows = {part: _rows(path, config, part) for part, path in given.items() if path is not None}
    made = (_targets if context.form else _classes)(config, context, rows)
    return Splits(made["calibration"], made["test"], made.get("train"))


def _rows(path: Path, config: ImageListData, part: str) -> list[Row]:
    """Raises DataError for a file that cannot be read, lacks a column or an image, or is empty."""
    where, found = f"workload.data.{part}", []
    columns = (config.image, *config.labels)
    try:
        for line, row in csv_rows(read_text(path, _MOST), columns):
            place = f"{path}: line {line}"
            for name in columns:
                if not row[name]:
                    raise DataError(where, f"{place} has nothing in column {name!r}")
            image = path.parent / row[config.image]
            if not image.is_file():
                raise DataError(where, f"{place} names {row[config.image]!r}: {image} is no file")
            found.append(Row(place, str(image), tuple(row[name] for name in config.labels)))
    except DocumentError as error:
        raise DataError(where, f"{path}: {error}") from error
    if not found:
        raise DataError(where, f"{path} has no rows")
    return found


def _classes(config: ImageListData, context: Context, rows: Rows) -> dict[str, Dataset]:
    if len(config.labels) != 1:
        raise DataError(
            "workload.data.label",
            f"task {context.task} needs one column of classes, not {len(config.labels)}; several "
            "are for regression and multi-label",
        )
    known = _known(config, context, rows)
    for part, each in rows.items():
        for row in each:
            if row.labels[0] not in known:
                raise _unknown(row, part, known)
    steps = image_steps(config)
    return {
        part: DatasetSplit(
            ImageFiles(
                str(getattr(config, part)),
                known,
                tuple((row.image, row.labels[0]) for row in each),
                steps,
            ),
            str(getattr(config, part)),
        )
        for part, each in rows.items()
    }


def _known(config: ImageListData, context: Context, rows: Rows) -> dict[str, int]:
    """Class -> output of the model; those of the model's own names are looked up once it is known
    how many outputs there are (evaluators/workloads/classes.py)."""
    names = context.classes
    if config.classes is not None:
        listed = [str(name) for name in config.classes]
        if all(map(str.isdecimal, listed)):
            return {name: int(name) for name in sorted(listed, key=int)}
        if names is not None and len(listed) < len(names):
            _check_among(listed, names)
        return {name: number for number, name in enumerate(listed)}
    every = {row.labels[0]: (part, row) for part, each in rows.items() for row in each}
    if all(map(str.isdecimal, every)):
        return {name: int(name) for name in sorted(every, key=int)}
    if names is None:
        part, row = next(place for label, place in every.items() if not label.isdecimal())
        raise DataError(
            f"workload.data.{part}",
            f"{row.place} has the class {row.labels[0]!r:.60}, and the model has no names for its "
            "classes: list them in workload.data.classes, in the order of its outputs",
        )
    found: dict[str, int] = {}
    for label, (part, row) in every.items():
        place = by_name([label], names)
        if place is None:
            raise _unknown(row, part, names)
        found |= place
    if len(set(found.values())) < len(found):
        twice = [label for label in found if list(found.values()).count(found[label]) > 1]
        raise DataError(
            f"workload.data.{every[twice[1]][0]}",
            f"{every[twice[1]][1].place}: {twice[0]!r} and {twice[1]!r} are one class of the "
            "model's; write one of them everywhere",
        )
    return found


def _check_among(listed: list[str], names: Sequence[str]) -> None:
    """Fewer classes than the model names are to be looked up there, all or none of them."""
    odd = [name for name in listed if by_name([name], names) is None]
    if odd and len(odd) < len(listed):
        meant = nearest(odd[0], names)
        raise DataError(
            "workload.data.classes",
            f"{odd[0]!r} is none of the model's classes"
            + (f"; did you mean {meant!r}?" if meant else "")
            + f" (known: {', '.join(names[:20])})",
        )


def _unknown(row: Row, part: str, known: Mapping[str, int] | Sequence[str]) -> DataError:
    meant = nearest(row.labels[0], known)
    return DataError(
        f"workload.data.{part}",
        f"{row.place} has the unknown class {row.labels[0]!r:.60}"
        + (f"; did you mean {meant!r}?" if meant else "")
        + f" (known: {', '.join(list(known)[:20])})",
    )


def _targets(config: ImageListData, context: Context, rows: Rows) -> dict[str, Dataset]:
    if config.classes is not None:
        raise DataError(
            "workload.data.classes",
            f"task {context.task} takes the numbers in the columns of `label` as they are; leave "
            "`classes` out",
        )
    return {
        part: ImageTargets(
            tuple(row.image for row in each),
            torch.tensor([_numbers(row, config, part) for row in each]),
            config,
        )
        for part, each in rows.items()
    }


def _numbers(row: Row, config: ImageListData, part: str) -> list[float]:
    made = []
    for name, text in zip(config.labels, row.labels, strict=True):
        try:
            made.append(number(text))
            if abs(made[-1]) > _FLOAT32:
                raise DocumentError(f"{text} is too large for float32")
        except DocumentError as error:
            raise DataError(
                f"workload.data.{part}", f"{row.place}, column {name!r}: {error}"
            ) from error
    return made
