"""Where data come from (`DataConfig`): images with labels, or a function of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apportion.compressors.errors import DataError, first_line
from apportion.compressors.user_code import load_object
from apportion.evaluators.data.arrays import ARRAYS, numbers
from apportion.evaluators.data.config import (
    Cifar10Data,
    ImageFolderData,
    NpzData,
    PythonData,
)
from apportion.evaluators.data.dataset import Splits, TensorDataset
from apportion.evaluators.data.files import local_file
from apportion.evaluators.data.images import ImageFiles
from apportion.evaluators.data.registry import Context, reads
from apportion.evaluators.data.splits import DatasetSplit, TensorSplit
from apportion.evaluators.data.vision.square import image_steps


@reads(NpzData)
def read_npz(config: NpzData, context: Context) -> Splits:
    if context.form not in ("", *ARRAYS):
        raise DataError(
            "workload.data.kind", f"npz has images, which task {context.task} does not take"
        )

    def made(name: str) -> TensorDataset:
        return _npz(name, config.mean, config.std, context.form)

    return Splits(
        made(config.calibration),
        made(config.test),
        None if config.train is None else made(config.train),
    )


@reads(ImageFolderData)
def read_folders(config: ImageFolderData, _context: Context) -> Splits:
    calibration, test = _folder(config.calibration, config), _folder(config.test, config)
    tuning = None if config.train is None else _folder(config.train, config)
    for other in (test, tuning):
        if other is not None:
            _check_classes(calibration, other)
    return Splits(calibration, test, tuning)


@reads(Cifar10Data)
def read_cifar10(config: Cifar10Data, _context: Context) -> Splits:
    train = _cifar10(config, train=True)
    return Splits(train, _cifar10(config, train=False), train)


def to_inputs(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W], scaled to [0, 1] and normalised per channel."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    shape = (1, -1, 1, 1)
    return (
        (scaled - torch.tensor(mean).reshape(shape)) / torch.tensor(std).reshape(shape)
    ).contiguous()


def _npz(name: str, mean: tuple[float, ...], std: tuple[float, ...], form: str) -> TensorDataset:
    path = local_file(name)
    if not path.is_file():
        raise DataError(
            str(path), "no such file; expected a .npz archive with `images` and `labels`"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            given = "inputs" if "inputs" in archive and "images" not in archive else "images"
            missing = [key for key in (given, "labels") if key not in archive]
            if missing:
                raise DataError(
                    str(path),
                    f"no array {missing[0]!r} in it (it holds "
                    f"{', '.join(archive.files) or 'none'})",
                )
            images, labels = archive[given], archive["labels"]
    except DataError:
        raise
    except (
        Exception
    ) as error:  # numpy, zipfile, zlib and tokenize each raise their own for an altered file
        raise DataError(str(path), f"not readable as a .npz archive ({error})") from error
    if given == "inputs":
        inputs = torch.from_numpy(numbers(images, "inputs", str(path)))
    else:
        inputs = _normalised(images, mean, std, path)
    if form:
        labels = ARRAYS[form](labels, images.shape[1:3], str(path))
    elif labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            str(path), f"labels must be integers [N], got {labels.dtype} {list(labels.shape)}"
        )
    if len(labels) != len(images) or not len(labels):
        raise DataError(
            str(path),
            f"{len(images)} {given} and {len(labels)} labels; expected as many of both, at least "
            "one",
        )
    if form:
        return TensorDataset((inputs, torch.from_numpy(labels)))
    return TensorSplit(inputs, torch.from_numpy(labels.astype(np.int64)))


def _normalised(
    images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...], path: Path
) -> Tensor:
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            str(path),
            f"images must be uint8 [N, H, W, 3] or [N, H, W], got {images.dtype} "
            f"{list(images.shape)}",
        )
    if not len(mean) == len(std) == images.shape[3]:
        raise DataError(
            str(path),
            f"images of {images.shape[3]} channels with {len(mean)} means and {len(std)} standard "
            "deviations",
        )
    return to_inputs(images, mean, std)


def _folder(path: Path, config: ImageFolderData) -> DatasetSplit:
    return DatasetSplit(ImageFiles.found(path, image_steps(config)), str(path))


def _check_classes(calibration: DatasetSplit, other: DatasetSplit) -> None:
    """The classes of each folder are numbered by themselves: one class more or less would shift the
    labels."""
    expected, found = set(calibration.dataset.classes), set(other.dataset.classes)
    if expected != found:
        raise DataError(
            other.source,
            f"its class folders are not those of {calibration.source} "
            f"(only here: {_some(found - expected)}; only there: {_some(expected - found)})",
        )


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (" ..." if len(names) > 5 else "") or "none"


def _cifar10(config: Cifar10Data, train: bool) -> DatasetSplit:
    from torchvision import datasets, transforms

    steps = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(config.mean, config.std)]
    )
    try:
        found = datasets.CIFAR10(
            str(config.root), train=train, transform=steps, download=config.download
        )
    except (OSError, RuntimeError) as error:
        raise DataError(
            str(config.root), f"torchvision finds no CIFAR-10 there ({error})"
        ) from error
    return DatasetSplit(found, str(config.root))


@reads(PythonData)
def read_python(config: PythonData, _context: Context) -> Splits:
    """Raises ConfigurationError for a function that cannot be imported, besides."""
    name = config.function
    function = load_object(name, "workload.data.function")
    try:
        found = function()
    except Exception as error:  # the user's own code
        raise DataError(name, f"calling it failed ({first_line(error)})") from error
    if not isinstance(found, Splits):
        raise DataError(
            name,
            f"gave a {type(found).__name__} instead of apportion.evaluators.data.dataset.Splits",
        )
    return found
