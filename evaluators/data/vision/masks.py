"""Images with masks: a class for each pixel."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from apportion.compressors.errors import DataError, first_line
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data import forms
from apportion.evaluators.data.dataset import Splits, TensorDataset
from apportion.evaluators.data.images import SUFFIXES, check_image, read_stored, some
from apportion.evaluators.data.registry import Context, reads
from apportion.evaluators.data.vision.config import MasksData
from apportion.evaluators.data.vision.samples import ImageSamples
from apportion.evaluators.data.vision.square import image_steps, mask_steps

log = logging.getLogger(__name__)

IGNORED = 255
"""Where no class is asked for."""
_DEPTH = 24
"""The byte of a PNG file that says how many bits a value has."""


@dataclass(frozen=True)
class ReadMasks(TensorDataset):
    """Such samples in memory, with the files of their masks."""

    files: tuple[str, ...] = ()

    def place_of(self, label: int) -> str:
        """The first mask that has a pixel of this class."""
        return self.files[int((self.batch[1] == label).flatten(1).any(1).nonzero()[0, 0])]


@dataclass(frozen=True)
class Masks(ImageSamples):
    """A batch is (images float32 [n, 3, size, size], masks int64 [n, size, size], 255 where no
    class is asked for). `pairs`: the files of each image and its mask."""

    folder: str
    pairs: tuple[tuple[str, str], ...]
    config: MasksData
    _said: set[str] = field(default_factory=set, compare=False)
    _found: dict[int, frozenset[int]] = field(default_factory=dict, compare=False)
    """Sample -> what stands in its mask."""

    def __len__(self) -> int:
        return len(self.pairs)

    def file(self, index: int) -> str:
        return self.pairs[index][0]

    def sample(self, index: int) -> tuple[Tensor, ...]:
        file, mask_file = self.pairs[index]
        image, mask = read_stored(file, self._said), read_mask(mask_file)
        _check_size(image.size, mask, file, mask_file)
        return image_steps(self.config)(image), mask_steps(self.config)(mask)

    def subset(self, indices: Sequence[int], progress: Progress = silent) -> ReadMasks:
        files = tuple(self.pairs[int(index)][1] for index in indices)
        return ReadMasks(super().subset(indices, progress).batch, files)

    def look(self, index: int) -> None:
        file, mask_file = self.pairs[index]
        check_image(file)
        mask = read_mask(mask_file)
        with Image.open(file) as image:
            _check_size(image.size, mask, file, mask_file)
        self._found[index] = frozenset(np.unique(mask).tolist())

    def label_range(self) -> tuple[int, int]:
        """The lowest and the highest class in all masks; reads those that nobody has looked at.
        Raises DataError, too, where they look like foreground in white."""
        for index in range(len(self)):
            if index not in self._found:
                self.look(index)
        every: frozenset[int] = frozenset().union(*self._found.values())
        asked = every - {IGNORED}
        if not asked:
            raise DataError(self.folder, f"its masks hold {IGNORED} alone: no class is asked for")
        if asked == {0} and IGNORED in every:
            raise DataError(
                self.folder,
                f"its masks hold 0 and {IGNORED} alone, and {IGNORED} is where no class is asked "
                "for; write the second class as 1",
            )
        return min(asked), max(asked)

    def place_of(self, label: int) -> str:
        """The first mask that has a pixel of this class, after `label_range`."""
        found = next(index for index in range(len(self)) if label in self._found[index])
        return self.pairs[found][1]


@reads(MasksData)
def read_masks(config: MasksData, context: Context) -> Splits:
    if context.form != forms.PIXELS:
        raise DataError(
            "workload.data.kind",
            f"masks are not what task {context.task} takes; semantic-segmentation does",
        )
    parts = {"calibration": config.calibration, "test": config.test, "train": config.train}
    made = {
        part: Masks(str(path), _pairs(path, f"workload.data.{part}"), config)
        for part, path in parts.items()
        if path is not None
    }
    return Splits(made["calibration"], made["test"], made.get("train"))


def read_mask(path: str) -> np.ndarray:
    """uint8 [H, W], classes. Raises DataError, with the file."""
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # Pillow raises many kinds for a file that is broken
        raise DataError(path, f"a mask cannot be read ({first_line(error)})") from error
    if mode not in ("1", "L", "P"):
        raise DataError(
            path,
            f"a mask must be greyscale of 8 bits, or have a palette: its values are classes; this "
            f"is an image of {_MODES.get(mode, mode)}",
        )
    found: np.ndarray = values.astype(np.uint8)
    if mode == "L":  # of 2 or 4 bits, which Pillow stretches to 0..255
        with Path(path).open("rb") as file:
            depth = file.read(_DEPTH + 1)[_DEPTH]
        if depth in (2, 4):
            found //= IGNORED // (2**depth - 1)
    return found


_MODES = {"RGB": "colours (RGB)", "RGBA": "colours (RGBA)", "I;16": "16 bits", "I": "32 bits"}


def _check_size(size: tuple[int, int], mask: np.ndarray, file: str, mask_file: str) -> None:
    height, width = mask.shape
    if (width, height) != size:
        raise DataError(
            mask_file, f"is {width} x {height}, its image {file} is {size[0]} x {size[1]}"
        )


def _pairs(folder: Path, where: str) -> tuple[tuple[str, str], ...]:
    """Images in the order of their names, with their masks. A warning says which masks have no
    image. Raises DataError."""
    images, masks = folder / "images", folder / "masks"
    for needed in (images, masks):
        if not needed.is_dir():
            raise DataError(where, f"{needed}: no such folder; `images` and `masks` are needed")
    files = [path for path in _visible(images) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise DataError(where, f"{images} has no images")
    known = {path.stem: path for path in _visible(masks) if path.suffix.lower() == ".png"}
    stems: dict[str, Path] = {}
    for path in files:
        if path.stem in stems:
            raise DataError(where, f"{path} and {stems[path.stem].name} would have the same mask")
        stems[path.stem] = path
        if path.stem not in known:
            raise DataError(where, f"{path} has no mask; {masks / path.stem}.png is needed")
    if left := sorted(set(known) - set(stems)):
        log.warning("%s: %d masks have no image: %s", masks, len(left), some(left))
    return tuple((str(path), str(known[path.stem])) for path in files)


def _visible(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
