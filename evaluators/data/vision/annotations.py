"""Boxes of images, as YOLO's text labels and COCO's JSON give them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apportion.compressors.errors import DataError, first_line
from apportion.evaluators.data.images import SUFFIXES

Box = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Annotated:
    """An image file and its boxes (class, x1, y1, x2, y2): in pixels of the file, or, where
    `relative`, as shares of its width and height."""

    path: Path
    boxes: tuple[Box, ...]
    relative: bool


def yolo(folder: Path, where: str) -> list[Annotated]:
    """Images in `folder`/images in the order of their names; one without a file in `folder`/labels
    has no boxes. Raises DataError."""
    images, labels = folder / "images", folder / "labels"
    for needed in (images, labels):
        if not needed.is_dir():
            raise DataError(where, f"{needed}: no such folder; `images` and `labels` are needed")
    files = [path for path in sorted(images.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise DataError(where, f"{images} has no images")
    stems = {path.stem for path in files}
    known = {path.stem for path in labels.glob("*.txt")}
    if not stems & known:
        raise DataError(where, f"no file in {labels} has the stem of an image (NAME.txt)")
    return [
        Annotated(path, _lines(labels / f"{path.stem}.txt", where), True)
        if path.stem in known
        else Annotated(path, (), True)
        for path in files
    ]


def _lines(path: Path, where: str) -> tuple[Box, ...]:
    found = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        try:
            label, x, y, w, h = map(float, parts)
        except ValueError:
            label = x = y = w = h = math.nan
        good = label.is_integer() and label >= 0 and w >= 0 and h >= 0
        if not good or not all(map(math.isfinite, (x, y, w, h))) or max(x, y, w, h) > 1.001:
            raise DataError(
                where,
                f"{path}: line {number} is {line!r:.60}; needed are class, centre x, centre y, "
                "width and height, as shares of the image",
            )
        found.append((label, x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    return tuple(found)


def coco(path: Path, images: Path | None, where: str) -> list[Annotated]:
    """Images in the order of the file; classes are its `category_id`s. Raises DataError."""
    if images is None:
        raise DataError("workload.data.images", f"the folder of {path}'s images is needed")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        boxes: dict[Any, list[Box]] = {each["id"]: [] for each in content["images"]}
        for each in content["annotations"]:
            if each.get("iscrowd"):  # an area with many, which is no box of one
                continue
            x, y, w, h = map(float, each["bbox"])
            boxes[each["image_id"]].append((float(each["category_id"]), x, y, x + w, y + h))
        found = [
            Annotated(images / each["file_name"], tuple(boxes[each["id"]]), False)
            for each in content["images"]
        ]
    except Exception as error:  # no JSON, keys that are missing, values of another type
        raise DataError(
            where, f"{path} is not readable as COCO's annotations ({first_line(error)})"
        ) from error
    if not found:
        raise DataError(where, f"{path} names no images")
    if missing := [each.path for each in found if not each.path.is_file()]:
        raise DataError(where, f"{missing[0]}: no such image, named in {path}")
    return found
