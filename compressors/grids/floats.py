"""Float formats: fp8 (E4M3, a float32 scale per row or tensor), mxfp4, mxfp6, mxfp8 (OCP
Microscaling Formats v1.0: blocks of 32 that share a power of two, E8M0) and nvfp4 (blocks of 16 of
E2M1 with a scale in E4M3, and a float32 scale of the tensor).

mxfp6 is E2M3 and mxfp8 is E4M3, those of each pair with more mantissa bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from apportion.compressors.formats import Format
from apportion.compressors.grids.codebook import Codebook, minifloat
from apportion.compressors.grids.grid import Grid, GridOptions

_BOOKS = {"fp8": (4, 3), "mxfp4": (2, 1), "mxfp6": (2, 3), "mxfp8": (4, 3), "nvfp4": (2, 1)}
_BIAS = 127
"""Of E8M0: a byte b is 2^(b - 127), and 255 is no number."""
_NORM, _SHARES = 2.4, 40
"""The error that a search for scales minimises, as grids per row do; ranges of 100 % ... 60 %."""


def fit(own: Format, weight: Tensor, options: GridOptions, like: Grid | None = None) -> Grid:
    """weight [rows, d] -> its grid. `options.fit`: scales that just hold each block (minmax; of
    blocks of mx formats the specification's: section 6.3), or the ones of the least |error|^2.4
    among smaller ones (mse; mx formats: among that power of two and the next one up). `options.per`
    and `options.scale` are fp8's, whose scales are free. `like`: has the scale of the tensor."""
    book, w = minifloat(*_BOOKS[own.name]), weight.float()
    columns = own.block or w.shape[1]
    if own.name == "fp8" and options.per == "tensor":
        blocks = w.reshape(1, -1)
    else:
        blocks = w.reshape(-1, columns)
    unit: Tensor | None = None
    search = _Search(blocks, book, options.fit == "mse")
    if own.name == "fp8":
        scale = search.shares(_powers_up if options.scale == "power-of-two" else _plain)
    elif own.name == "nvfp4":
        unit = tensor = _tensor_scale(w, book) if like is None or like.unit is None else like.unit
        scale = search.shares(lambda found: _rounded(found / tensor) * tensor)
    else:
        scale = search.powers()
    wide = scale.reshape(-1, w.shape[1] // columns if own.block else 1)
    return Grid(wide, torch.zeros_like(wide), own.bits, own.block, book, own.name, unit)


def store(own: Format, grid: Grid) -> dict[str, Tensor]:
    """`scale`: float32 (fp8), E8M0 bytes (mx formats), or bit patterns of E4M3 with the float32
    `tensor` [1] that they are multiplied with (nvfp4). Raises ValueError for scales that the format
    does not have."""
    scale = grid.scale
    if own.name == "fp8":
        return {"scale": scale.reshape(-1).clone()}
    if own.name == "nvfp4":
        unit, eighths = grid.unit, minifloat(4, 3)
        code = scale if unit is None else eighths.codes(scale / unit)
        if unit is None or not torch.equal(eighths.values_of(code) * unit, scale):
            raise ValueError("the scales are no E4M3 times that of the tensor")
        return {"scale": code, "tensor": unit.clone()}
    mantissa, exponent = scale.frexp()
    if not (mantissa == 0.5).all():
        raise ValueError("the scales are no powers of two")
    return {"scale": (exponent - 1 + _BIAS).to(torch.uint8)}


def read(own: Format, parts: Mapping[str, Tensor], rows: int) -> Grid:
    book, kept = minifloat(*_BOOKS[own.name]), parts["scale"]
    unit = parts["tensor"].float() if own.name == "nvfp4" else None
    if own.name == "fp8":
        scale = kept.float().reshape(-1, 1)
    elif unit is not None:
        scale = minifloat(4, 3).values_of(kept).reshape(rows, -1) * unit
    else:
        one = torch.ones(kept.shape, dtype=torch.float32)
        scale = torch.ldexp(one, kept.int() - _BIAS).reshape(rows, -1)
    return Grid(scale, torch.zeros_like(scale), own.bits, own.block, book, own.name, unit)


def _plain(scale: Tensor) -> Tensor:
    return scale


def _powers_up(scale: Tensor) -> Tensor:
    return torch.exp2(torch.log2(scale).sub(1e-6).ceil())


def _rounded(scale: Tensor) -> Tensor:
    """To E4M3, which has no smaller number than 2^-9 above zero."""
    book = minifloat(4, 3)
    return book.nearest(scale.clamp(2.0**-9, book.largest))


def _tensor_scale(weight: Tensor, book: Codebook) -> Tensor:
    """With it the largest block's scale is E4M3's largest number."""
    most = weight.abs().max() / (book.largest * minifloat(4, 3).largest)
    return torch.where(most > 0, most, torch.ones_like(most)).reshape(1)


@dataclass
class _Search:
    """Scales [blocks, 1] of blocks [blocks, columns]."""

    blocks: Tensor
    book: Codebook
    search: bool

    def shares(self, rounded: Callable[[Tensor], Tensor]) -> Tensor:
        """Those of shrunk ranges, each rounded as the format has them."""
        whole = self._most() / self.book.largest
        steps = range(_SHARES + 1 if self.search else 1)
        return self._best([rounded(whole * (1 - step / 100)) for step in steps])

    def powers(self) -> Tensor:
        """2^(floor(log2 max |w|) - e), e being the exponent of the largest number of the format;
        weights beyond that number are cut to it."""
        exponent = self._most().frexp().exponent - 1
        largest = torch.tensor(self.book.largest).frexp().exponent - 1
        one = torch.ones_like(self.blocks[:, :1])
        power = (exponent - largest).clamp(-_BIAS + 1, _BIAS - 1)
        ups = (0, 1) if self.search else (0,)
        return self._best([torch.ldexp(one, power + up) for up in ups])

    def _most(self) -> Tensor:
        most = self.blocks.abs().amax(1, keepdim=True)
        return torch.where(most > 0, most, torch.ones_like(most))

    def _best(self, scales: list[Tensor]) -> Tensor:
        best, least = scales[0], torch.full_like(scales[0], torch.inf)
        for scale in scales:
            near = scale * self.book.nearest(self.blocks / scale)
            error = (near - self.blocks).abs().pow(_NORM).sum(1, keepdim=True)
            best = torch.where(error < least, scale, best)
            least = torch.minimum(error, least)
        return best
