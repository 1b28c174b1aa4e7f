"""Image files with a class each: found, read, and looked at before hours of work."""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from apportion.compressors.errors import DataError
from apportion.compressors.progress import Progress, silent

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ImageFolder."""
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""What a whole file of a format ends with, give or take a few bytes."""
_TAIL = 64
_ORIENTATION, _UPRIGHT = 274, 1
"""EXIF's tag, and what it says of an image that is not to be turned."""
_SIXTEEN, _EIGHT = 65535, 255


@dataclass(frozen=True)
class ImageFiles:
    """Images with a class each. `labels`: class -> label."""

    source: str
    labels: Mapping[str, int]
    files: tuple[tuple[str, str], ...]
    """(path, class) of each image."""
    transform: Callable[[Image.Image], Tensor]
    _said: set[str] = field(default_factory=set, compare=False)

    @classmethod
    def found(cls, path: Path, transform: Callable[[Image.Image], Tensor]) -> ImageFiles:
        """The images in one folder per class below `path`, as torchvision's ImageFolder reads them
        and in its order, but without what is hidden; labelled in the alphabetical order of the
        folders. A warning says what is skipped. Raises DataError."""
        try:
            folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        except OSError as error:
            raise DataError(
                str(path),
                f"expected a folder with one folder of images per class ({error.strerror})",
            ) from error
        skipped: Counter[str] = Counter("hidden" for name in folders if _is_hidden(name))
        classes = [name for name in folders if not _is_hidden(name)]
        files = [(file, name) for name in classes for file in _images(path / name, skipped)]
        if not files:
            raise DataError(
                str(path), "expected a folder with one folder of images per class (no image found)"
            )
        if skipped:
            what = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
            log.warning("%s: skipped %d files and folders: %s", path, skipped.total(), what)
        if empty := sorted(set(classes) - {name for _, name in files}):
            log.warning("%s: %d classes without images: %s", path, len(empty), some(empty))
        labels = {name: label for label, name in enumerate(classes)}
        return cls(str(path), labels, tuple(files), transform)

    @property
    def classes(self) -> list[str]:
        """All of them, in the order of their labels as they were found."""
        return list(self.labels)

    @property
    def targets(self) -> list[int]:
        """The label of each image."""
        return [self.labels[name] for _, name in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Raises DataError, with the file."""
        path, name = self.files[index]
        return self.transform(read_stored(path, self._said)), self.labels[name]

    def labelled(self, labels: Mapping[str, int]) -> ImageFiles:
        """The same images with other labels."""
        return replace(self, labels=labels)

    def check(self, indices: Iterable[int], progress: Progress = silent) -> None:
        """Look at image files without decoding them, but for those whose end is not there. Raises
        DataError for the first one that cannot be read, with the file."""
        wanted = list(indices)
        for done, index in enumerate(wanted, 1):
            check_image(self.files[index][0])
            if done % 100 == 0 or done == len(wanted):
                progress(f"look at images: {self.source}", done, len(wanted))


def read_image(path: str) -> tuple[Image.Image, bool]:
    """The image in RGB, without its transparency, of 16 bits the upper 8, and whether its EXIF asks
    for it to be turned. Raises DataError, with the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transparency, EXIF that is odd, and many pixels
        try:
            with Image.open(path) as image:
                turned = image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT
                return _rgb(image), turned
        except Exception as error:  # Pillow raises many kinds for a file that is broken
            raise _unreadable(path, error) from error


def read_stored(path: str, said: set[str]) -> Image.Image:
    """The same image; a warning for the first one that is to be turned is noted in `said`."""
    image, turned = read_image(path)
    if turned and "turned" not in said:
        said.add("turned")
        log.warning(
            "%s: is to be turned when shown, says its EXIF; such images are read as they are "
            "stored, as torchvision does",
            path,
        )
    return image


def check_image(path: str) -> None:
    """Raises DataError for a file that is no image, has too many pixels, or ends too early."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                end = _ENDS.get(image.format or "")
            if end is not None:
                with Path(path).open("rb") as file:
                    file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                    if end in file.read():
                        return
        except Exception as error:
            raise _unreadable(path, error) from error
    read_image(path)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow would take all above 255 for white
        values = np.asarray(image).astype(np.int64)
        eight = (values * _EIGHT + _SIXTEEN // 2) // _SIXTEEN
        return Image.fromarray(eight.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"{'integers of 32 bits' if image.mode == 'I' else 'floats'}, whose white is not "
            "known; 8 and 16 bits can be read"
        )
    return image.convert("RGB")


def _unreadable(path: str, error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(path, f"an image cannot be read ({reason})")


def _images(folder: Path, skipped: Counter[str]) -> Iterable[str]:
    """The image files below a class folder, sorted as torchvision sorts them; counts the rest."""
    found = []
    for where, folders, files in sorted(os.walk(folder, followlinks=True)):
        if any(_is_hidden(part) for part in Path(where).relative_to(folder).parts):
            continue
        skipped["hidden"] += sum(map(_is_hidden, [*folders, *files]))
        for name in sorted(files):
            if _is_hidden(name):
                continue
            if name.lower().endswith(SUFFIXES):
                found.append(os.path.join(where, name))
            else:
                skipped[f"no images ({Path(name).suffix.lower() or 'no suffix'})"] += 1
    skipped += Counter()  # without zeros
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def some(names: list[str]) -> str:
    """The first five."""
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
