"""The sections of `workload.data` that name images with more than a class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from apportion.db.documents.section import Section

Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SquareSection(Section):
    """What all sections have whose images are cut to a square, as classifiers are evaluated."""

    resize: int = Field(256, ge=1, description="Shorter side after resizing.")
    size: int = Field(224, ge=1, description="Side of the square that is cut from the centre.")
    mean: tuple[Number, Number, Number] = Field(
        IMAGENET_MEAN, description="Per channel, of values in [0, 1]."
    )
    std: tuple[Positive, Positive, Positive] = Field(
        IMAGENET_STD, description="Per channel, of values in [0, 1]."
    )


class ImageListData(SquareSection):
    """Image files named in csv files, with a class or numbers each."""

    kind: Literal["imagelist"]
    calibration: Path = Field(
        description="A csv file whose first line names its columns; images are relative to its "
        "folder."
    )
    test: Path = Field(description="Images that only reports look at.")
    train: Path | None = Field(None, description="Default: the calibration images.")
    image: str = Field(min_length=1, description="The column of image files.")
    label: str | tuple[str, ...] = Field(
        description="The column of classes, by name or by number; for regression and multi-label "
        "the columns of numbers, in the order of the model's outputs."
    )
    classes: tuple[str | int, ...] | None = Field(
        None,
        min_length=1,
        description="All names of classes, in the order of the model's outputs, or any of those "
        "that the model itself has; or numbers of its outputs. Default: the model's names, or "
        "numbers.",
    )

    @property
    def labels(self) -> tuple[str, ...]:
        return self.label if isinstance(self.label, tuple) else (self.label,)

    @model_validator(mode="after")
    def _different(self) -> ImageListData:
        names = list(map(str, self.classes or ()))
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"class {twice[0]!r} stands twice in `classes`")
        columns = [self.image, *self.labels]
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise ValueError(f"column {twice[0]!r} is asked for twice")
        return self


class MasksData(SquareSection):
    """Images with a class for each pixel: a folder with `images`, and `masks` of the same stems,
    PNG files of palette or greyscale whose values are classes; 255 where none is asked for."""

    kind: Literal["masks"]
    calibration: Path = Field(description="A folder with `images` and `masks`.")
    test: Path = Field(description="Such a folder that only reports look at.")
    train: Path | None = Field(None, description="Default: the calibration images.")

    @model_validator(mode="after")
    def _inside(self) -> MasksData:
        if self.size > self.resize:
            raise ValueError(
                f"size {self.size} is above resize {self.resize}: what is cut out would have a "
                "border without classes"
            )
        return self


class BoxesData(Section):
    """Images with boxes: YOLO's text labels, or COCO's JSON. Images keep their shape: they are
    resized to fit a square and stand in its upper left corner."""

    kind: Literal["boxes"]
    calibration: Path = Field(
        description="A folder with `images` and `labels` (a text file of the same stem each), or a "
        "JSON file of COCO's annotations."
    )
    test: Path = Field(description="Images that only reports look at.")
    train: Path | None = Field(None, description="Default: the calibration images.")
    images: Path | None = Field(
        None, description="The folder of the images that COCO's annotations name."
    )
    size: int = Field(640, ge=1, description="Side of the square.")
    pad: int = Field(114, ge=0, le=255, description="Value beside the image, before scaling.")
    order: Literal["rgb", "bgr"] = Field("rgb", description="Of the channels.")
    scale: Positive = Field(255.0, description="Values 0 to 255 are divided by it; 1 leaves them.")
    mean: tuple[Number, Number, Number] = Field(
        (0.0, 0.0, 0.0), description="Per channel in `order`, of scaled values."
    )
    std: tuple[Positive, Positive, Positive] = Field(
        (1.0, 1.0, 1.0), description="Per channel in `order`, of scaled values."
    )
