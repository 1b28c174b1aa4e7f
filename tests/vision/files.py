"""The data of nets.py in files: images are random, what is wanted is what the dense model gives."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tests.vision import nets

COUNT = 48
GREY: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3}
"""How the images are normalised."""


def save_masks(folder: Path, seed: int) -> None:
    """Images and masks of `nets.unet`, a tenth of whose pixels are not asked for."""
    images, inputs, generator = _pictures(seed)
    with torch.no_grad():
        wanted = nets.unet()(inputs).argmax(1)
    wanted[torch.rand(wanted.shape, generator=generator) > 0.9] = 255
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(COUNT):
        Image.fromarray(images[i].numpy()).save(folder / "images" / f"{i}.png")
        Image.fromarray(wanted[i].byte().numpy()).save(folder / "masks" / f"{i}.png")


def save_list(file: Path, seed: int) -> Path:
    """Images that `nets.classifier` takes for its second or fourth class, by these names."""
    images, inputs, _ = _pictures(seed)
    model = nets.classifier()
    with torch.no_grad():
        found = model(inputs).argmax(1)
    (file.parent / file.stem).mkdir()
    rows = [("file", "class")]
    for i, label in enumerate(found.tolist()):
        if label in (1, 3):
            rows.append((f"{file.stem}/{i}.png", nets.Classifier.classes[label]))
            Image.fromarray(images[i].numpy()).save(file.parent / rows[-1][0])
    return _table(file, rows)


def save_numbers(file: Path, seed: int) -> Path:
    """Columns x0 to x11, and what `nets.mlp` makes of them: its numbers with noise, which of them
    are above 0, and which is the highest."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(COUNT, 12, generator=generator)
    with torch.no_grad():
        right = nets.mlp()(inputs)
    noisy = right + 0.1 * torch.randn(right.shape, generator=generator)
    names = [f"x{i}" for i in range(12)] + [f"{of}{i}" for of in ("y", "on") for i in range(3)]
    rows: list[Any] = [(*names, "best")]
    for x, y, best in zip(inputs, noisy, right.argmax(1), strict=True):
        rows.append((*x.tolist(), *y.tolist(), *(y > 0).int().tolist(), best.item()))
    return _table(file, rows)


def _pictures(seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
    """uint8 [n, 16, 16, 3], the same as inputs [n, 3, 16, 16], and what else is random."""
    generator = torch.Generator().manual_seed(seed)
    shape = (COUNT, nets.SIDE, nets.SIDE, 3)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return images, (images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25, generator


def _table(file: Path, rows: list[Any]) -> Path:
    with file.open("w", newline="") as target:
        csv.writer(target).writerows(rows)
    return file
