"""Augmented calibration: the layer database sees every image several times, moved and mirrored at
random."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from apportion.db.documents.section import Section
from apportion.evaluators.workloads.data import TensorSplit


class AugmentConfig(Section):
    """Rounds of random crops and mirror images, for Hessians and activation grids; the search
    scores plain images."""

    rounds: int = Field(
        10, ge=1, description="How often every image is seen, each time cropped and mirrored anew."
    )
    crop: int = Field(
        4,
        ge=0,
        description="Pixels of zero padding around the image that a crop of its size is taken "
        "from.",
    )
    flip: bool = Field(True, description="Mirror every second image, at random.")


def augmented(
    split: TensorSplit, batch_size: int, config: AugmentConfig, seed: int
) -> Iterator[Tensor]:
    """Inputs [n, C, H, W] batch by batch, round by round; the same at every call with the same
    seed. The padding has the value 0 after normalisation."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(config.rounds):
        for inputs, _labels in split.batches(batch_size):
            yield augment(inputs, config, generator)


def augment(x: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """x [n, C, H, W], each image cropped and mirrored at random. The padding has the value 0 after
    normalisation."""
    n, channels, height, width = x.shape
    shift = torch.randint(0, 2 * config.crop + 1, (n, 2), generator=generator)
    rows = shift[:, 0, None] + torch.arange(height)
    columns = shift[:, 1, None] + torch.arange(width)
    if config.flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(x, (config.crop,) * 4)
    every = torch.arange(n)[:, None, None, None]
    return padded[
        every,
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
