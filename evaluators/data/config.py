"""The job file's `workload.data`: where data come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from apportion.db.documents.section import Section
from apportion.evaluators.data.location import Location
from apportion.evaluators.data.text.config import SquadData, TableData, TextData
from apportion.evaluators.data.vision.config import BoxesData

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


_Mean = Annotated[float, Field(allow_inf_nan=False)]


_Std = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
    mean: tuple[_Mean, ...] = Field(_IMAGENET_MEAN, description="Per channel, of values in [0, 1].")
    std: tuple[_Std, ...] = Field(_IMAGENET_STD, description="Per channel, of values in [0, 1].")


class ImageFolderData(Section):
    """Folders with one folder of images per class (torchvision's ImageFolder)."""

    kind: Literal["imagefolder"]
    calibration: Path
    test: Path
    train: Path | None = Field(
        None, description="For corrections and fine-tuning; default: the calibration images."
    )
    resize: int = Field(256, ge=1, description="Shorter side after resizing.")
    size: int = Field(224, ge=1, description="Side of the square that is cut from the centre.")
    mean: tuple[_Mean, _Mean, _Mean] = _IMAGENET_MEAN
    std: tuple[_Std, _Std, _Std] = _IMAGENET_STD


class Cifar10Data(Section):
    """CIFAR-10 as torchvision reads it: calibration and re-tuning from its training images, test
    from its test images."""

    kind: Literal["cifar10"]
    root: Path
    download: bool = False
    mean: tuple[_Mean, _Mean, _Mean] = _CIFAR_MEAN
    std: tuple[_Std, _Std, _Std] = _CIFAR_STD


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
    | Cifar10Data
    | TextData
    | TableData
    | SquadData
    | BoxesData
    | PythonData,
    Field(discriminator="kind"),
]
