"""The job file's `workload.data`: where data come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from apportion.db.documents.section import Section
from apportion.evaluators.data.location import Location
from apportion.evaluators.data.text.config import SquadData, TableData, TextData
from apportion.evaluators.data.vision.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BoxesData,
    ImageListData,
    MasksData,
    Number,
    Positive,
    SquareSection,
)

_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class DigitsData(Section):
    """The 1,797 handwritten 8 x 8 digits that ship with scikit-learn."""

    kind: Literal["digits"]


class NpzData(Section):
    """numpy archives with `images` uint8 [N, H, W, 3] (or [N, H, W] gray) and `labels`:
    integers [N], or what the task asks for: numbers [N, k], masks [N, H, W], boxes [N, M, 5]."""

    kind: Literal["npz"]
    calibration: Location = Field(
        description="Samples to compress and search with: a file, or a URL."
    )
    test: Location = Field(description="Samples that only reports look at.")
    train: Location | None = Field(
        None, description="For corrections and fine-tuning; default: the calibration samples."
    )
    mean: tuple[Number, ...] = Field(IMAGENET_MEAN, description="Per channel, of values in [0, 1].")
    std: tuple[Positive, ...] = Field(IMAGENET_STD, description="Per channel, of values in [0, 1].")


class ImageFolderData(SquareSection):
    """Folders with one folder of images per class (torchvision's ImageFolder)."""

    kind: Literal["imagefolder"]
    calibration: Path
    test: Path
    train: Path | None = Field(
        None, description="For corrections and fine-tuning; default: the calibration images."
    )


class Cifar10Data(Section):
    """CIFAR-10 as torchvision reads it: calibration and re-tuning from its training images, test
    from its test images."""

    kind: Literal["cifar10"]
    root: Path
    download: bool = False
    mean: tuple[Number, Number, Number] = _CIFAR_MEAN
    std: tuple[Positive, Positive, Positive] = _CIFAR_STD


class PythonData(Section):
    """Data of any kind, from the user's own code."""

    kind: Literal["python"]
    function: str = Field(
        pattern=r"^[\w.]+:\w+$",
        description="package.module:function, called without arguments for the Splits "
        "(apportion.evaluators.data.dataset) that the task understands.",
    )


DataConfig = Annotated[
    DigitsData
    | NpzData
    | ImageFolderData
    | ImageListData
    | Cifar10Data
    | TextData
    | TableData
    | SquadData
    | BoxesData
    | MasksData
    | PythonData,
    Field(discriminator="kind"),
]
