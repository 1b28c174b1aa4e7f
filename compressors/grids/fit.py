"""The grid of a layer's weights, by what its level says."""

from __future__ import annotations

from torch import Tensor

from apportion.compressors import formats
from apportion.compressors.grids.affine import fit_grid
from apportion.compressors.grids.grid import Grid, GridOptions
from apportion.compressors.levels import Quantization


def fit_weights(
    weight: Tensor, quantization: Quantization, options: GridOptions, like: Grid | None = None
) -> Grid:
    """weight [rows, d] -> its grid, on its device; `like`: the grid of the whole layer that these
    columns are a part of. Raises ValueError for a level that quantizes no weights, or to a format
    that is not registered here."""
    if quantization.weight_bits is None:
        raise ValueError(f"{quantization} quantizes no weights")
    if not quantization.format:
        return fit_grid(weight, quantization.weight_bits, options)
    found = formats.find(quantization.format)
    if found is None:
        raise ValueError(f"no weight format {quantization.format!r} is registered")
    grid: Grid = found.module.fit(found, weight, options, like)
    return grid
