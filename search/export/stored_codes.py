"""The codes of a quantized weight as compressed-tensors stores them: packed here, to the bit, where
the library would round anew."""

from __future__ import annotations

import torch
from torch import Tensor

from apportion.compressors import formats
from apportion.compressors.activations import InputGrid, TokenGrid
from apportion.compressors.errors import ModelError
from apportion.compressors.grids import Grid
from apportion.search.export.schemes import Scheme

_BYTE = 8


def stored(weight: Tensor, grid: Grid, scheme: Scheme) -> dict[str, Tensor]:
    """weight [rows, columns] on `grid` -> the tensors of its module, by their names there. Raises
    ModelError for a weight that does not lie on the grid, or one that is not about zero."""
    codes = grid.codes(weight)
    if not torch.equal(grid.values(codes), weight.float()):
        raise ModelError(
            "its weight does not lie on its grid, as after a correction that moves single weights"
        )
    if scheme.per == "tensor" and len(grid.scale) != 1:
        raise ModelError("its rows have scales of their own, as after a correction")
    if scheme.quantization.format in formats.names():
        return _floats(codes.to(torch.uint8), grid, scheme.encoding)
    middle = 2 ** (grid.bits - 1)
    if not (grid.zero == middle).all():
        raise ModelError("its grid is not symmetric, as after a correction that turns rows over")
    signed = (codes - middle).to(torch.int8)
    if scheme.encoding == "int-quantized":
        return {"weight": signed, "weight_scale": _scale(grid, scheme, len(weight))}
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    return {
        "weight_packed": pack_to_int32(signed, grid.bits),
        "weight_scale": _scale(grid, scheme, len(weight)),
        "weight_shape": torch.tensor(weight.shape),
    }


def stored_input(grid: InputGrid) -> dict[str, Tensor]:
    """The tensors of a module whose input is quantized: codes are about zero there. Scales of
    tokens are none."""
    if isinstance(grid, TokenGrid):
        return {}
    return {
        "input_scale": torch.tensor([grid.scale], dtype=torch.float32),
        "input_zero_point": torch.tensor([grid.zero - 2 ** (grid.bits - 1)], dtype=torch.int8),
    }


def _scale(grid: Grid, scheme: Scheme, rows: int) -> Tensor:
    """[rows, 1], [rows, groups] or, of the whole tensor, [1]; in float16 where a group's is one."""
    scale = grid.scale
    if scheme.per == "tensor":
        return scale.reshape(1).clone()
    half = scale.half()
    if scheme.per == "group" and torch.equal(half.float(), scale):
        return half
    return scale.expand(rows, -1).clone()


def _floats(codes: Tensor, grid: Grid, encoding: str) -> dict[str, Tensor]:
    """Codes are bit patterns, as the library's are."""
    if encoding == "float-quantized":
        per = [1] if len(grid.scale) == 1 else [len(grid.scale), 1]
        return {"weight": codes.view(torch.float8_e4m3fn), "weight_scale": grid.scale.reshape(per)}
    form = formats.find(grid.format)
    assert form is not None
    try:
        parts = form.module.store(form, grid)
    except ValueError as error:
        raise ModelError(f"{error}, as after a correction that stretches rows") from error
    scale = parts["scale"].reshape(grid.scale.shape)
    if encoding == "nvfp4-pack-quantized":
        return {
            "weight_packed": _nibbles(codes),
            "weight_scale": scale.view(torch.float8_e4m3fn),
            "weight_global_scale": 1 / parts["tensor"],
        }
    if encoding == "mxfp8-quantized":
        return {"weight": codes.view(torch.float8_e4m3fn), "weight_scale": scale}
    packed = _nibbles(codes) if encoding == "mxfp4-pack-quantized" else _sixes(codes)
    return {"weight_packed": packed, "weight_scale": scale}


def _nibbles(codes: Tensor) -> Tensor:
    """Two codes of four bits a byte, the first in the lower half."""
    return (codes[:, 0::2] | codes[:, 1::2] << 4).contiguous()


def _sixes(codes: Tensor) -> Tensor:
    """Four codes of six bits in three bytes, the first in the lowest bits."""
    four = codes.int().reshape(len(codes), -1, 4)
    word = four[..., 0] | four[..., 1] << 6 | four[..., 2] << 12 | four[..., 3] << 18
    bytes_ = torch.stack([word >> _BYTE * i & 0xFF for i in range(3)], dim=-1)
    return bytes_.to(torch.uint8).reshape(len(codes), -1)
