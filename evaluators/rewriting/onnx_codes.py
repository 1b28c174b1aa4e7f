"""Quantized weights and inputs of a model, as ONNX has them: codes, and pairs of QuantizeLinear and
DequantizeLinear."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from apportion.compressors.activations import ActivationGrid
from apportion.compressors.errors import ModelError
from apportion.compressors.grids import Grid
from apportion.compressors.kinds.feeding import with_first

CODES = ".parametrizations.weight.original"
"""What torch calls the codes of a layer whose weight is made from them."""


def stretched(grid: Grid, old: Tensor, new: Tensor) -> Grid:
    """The grid of weights `new`, whose rows are those of `old` on `grid`, each times a number of
    its own. Rows that are turned over have their codes mirrored."""
    if torch.equal(old, new):
        return grid
    old, new = old.flatten(1), new.flatten(1)
    factor = (old * new).sum(1, keepdim=True) / (old**2).sum(1, keepdim=True).clamp(min=1e-30)
    factor = torch.where(factor == 0, 1.0, factor)
    if not grid.plain:  # a row that is turned over has scales below zero
        base = None if grid.base is None else grid.base * factor
        return replace(grid, scale=grid.scale * factor, base=base)
    zero = torch.where(factor < 0, 2**grid.bits - 1 - grid.zero, grid.zero)
    return replace(grid, scale=grid.scale * factor.abs(), zero=zero)


def weight_of(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight.detach()


class Pair(nn.Module):
    """QuantizeLinear and DequantizeLinear on `grid`. One of fewer than 8 bits is clipped to its
    codes first."""

    scale: Tensor
    zero: Tensor

    def __init__(self, grid: ActivationGrid) -> None:
        super().__init__()
        top = 2**grid.bits - 1
        self._range = (
            tuple(grid.scale * (code - grid.zero) for code in (0, top)) if grid.bits < 8 else None
        )
        self.register_buffer("scale", torch.tensor(grid.scale, dtype=torch.float32))
        self.register_buffer("zero", torch.tensor(grid.zero, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        if self._range is not None:
            x = x.clamp(*self._range)
        codes = torch.onnx.ops.symbolic(
            "QuantizeLinear", (x, self.scale, self.zero), dtype=torch.uint8, shape=shape
        )
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (codes, self.scale, self.zero), dtype=torch.float32, shape=shape
        )


class InputPair:
    def __init__(self, grid: ActivationGrid) -> None:
        self._pair = Pair(grid)

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return with_first(args, kwargs, self._pair)


class _FromCodes(nn.Module):
    """Codes -> weight, by DequantizeLinear."""

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: Tensor, zero: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)

    def forward(self, codes: Tensor) -> Tensor:
        along: dict[str, Any] = {"axis": 0} if self.scale.ndim else {}
        inputs = (codes, self.scale, self.zero)
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", inputs, along, dtype=torch.float32, shape=codes.shape
        )


def make_from_codes(
    name: str, module: nn.Module, grid: Grid, signed: bool, shared: dict[tuple[int, bool], Tensor]
) -> None:
    """Let a module make its weight from its codes.

    Args:
        name: the module's, for messages.
        module: whose weight lies on the grid; changed in place.
        grid: of its rows, or of all of it.
        signed: whether codes are int8 about 0, instead of uint8.
        shared: codes that are there already, by the weight's address and `signed`; added to.

    Raises:
        ModelError: the weight does not lie on the grid.
    """
    weight = weight_of(module)
    codes = grid.codes(weight.flatten(1))
    if not torch.allclose(grid.values(codes).reshape(weight.shape), weight, rtol=1e-4, atol=1e-7):
        raise ModelError(f"layer {name!r}: its weights do not lie on their grid")
    kind, offset = (torch.int8, grid.zero[:1]) if signed else (torch.uint8, torch.zeros(1))
    shape = (-1,) if len(grid.scale) > 1 else ()
    made = _FromCodes(
        grid.scale.reshape(shape).float(), (grid.zero - offset).reshape(shape).to(kind)
    )
    stored = shared.setdefault(
        (weight.data_ptr(), signed), (codes - offset).reshape(weight.shape).to(kind)
    )
    # torch would run `made` to see whether it gives a weight of that shape; it stands for an
    # operator of ONNX and gives none
    parametrize.register_parametrization(module, "weight", made, unsafe=True)
    module.parametrizations.weight.original = nn.Parameter(stored, requires_grad=False)  # type: ignore[union-attr]
