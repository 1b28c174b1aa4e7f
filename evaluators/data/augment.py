"""Images moved and mirrored at random."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from apportion.db.documents.section import Section


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
