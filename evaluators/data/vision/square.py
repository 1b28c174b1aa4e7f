"""Images and masks brought to one size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from apportion.evaluators.data.vision.config import SquareSection


def image_steps(config: SquareSection) -> Callable[[Image.Image], Tensor]:
    """RGB image -> float32 [3, size, size]: the shorter side resized, the centre cut out,
    normalised."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize(config.resize),
            transforms.CenterCrop(config.size),
            transforms.ToTensor(),
            transforms.Normalize(config.mean, config.std),
        ]
    )


def mask_steps(config: SquareSection) -> Callable[[np.ndarray], Tensor]:
    """uint8 [H, W] -> int64 [size, size], cut as its image is; each pixel takes the class of the
    nearest one."""
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    cut = transforms.Compose(
        [
            transforms.Resize(config.resize, interpolation=InterpolationMode.NEAREST),
            transforms.CenterCrop(config.size),
        ]
    )
    return lambda mask: torch.from_numpy(np.array(cut(Image.fromarray(mask)), dtype=np.int64))
