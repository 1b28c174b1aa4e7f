"""Small layers to compress."""

import torch
from torch import Tensor, nn

from apportion.compressors.calibration import over
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.layers import LayerSpec


def problem(seed: int, rows: int = 6, d: int = 12) -> tuple[Tensor, Tensor]:
    """Weights [rows, d] and a well-conditioned Hessian [d, d], float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * d, d, generator=generator, dtype=torch.float64) @ torch.randn(
        d, d, generator=generator, dtype=torch.float64
    )
    return torch.randn(rows, d, generator=generator, dtype=torch.float64), 2 * x.T @ x / len(
        x
    ) + 0.01 * torch.eye(d, dtype=torch.float64)


def linear(rows: int, columns: int) -> LayerSpec:
    return LayerSpec("layer", "linear", (rows, columns), 1, rows, columns)


def layers_of(model: nn.Module, x: Tensor) -> list[LayerSpec]:
    """The layers that a model uses on `x`."""
    return list(find_layers(model, over(x)).layers)
