"""Weights as the bytes of GGUF's tensor types, without a change of any value.

Codes are packed as they are. The gguf library can only round weights anew, to scales of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apportion.compressors.grids import Grid

Bytes = np.ndarray
BLOCK = 32
"""Columns that share a scale, in all types but tq2_0, which has 256."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight in the file: the type as GGUF calls it, and its data, numbers of that type or uint8
    [rows, bytes of a row]."""

    type: str
    data: Bytes


def stored(weight: Tensor, grid: Grid | None = None) -> Stored:
    """A weight, float32, as the smallest type that holds it to the bit; vectors are float32, as
    llama.cpp adds and multiplies these."""
    found = None if grid is None or weight.dim() != 2 else _by_codes(weight, grid)
    return found or _floats(weight)


def _floats(weight: Tensor) -> Stored:
    if weight.dim() > 1:
        if torch.equal(weight.half().float(), weight):
            return Stored("F16", weight.half().numpy())
        if torch.equal(weight.bfloat16().float(), weight):
            return Stored("BF16", weight.bfloat16().contiguous().view(torch.uint8).numpy())
    return Stored("F32", weight.numpy())


def _by_codes(weight: Tensor, grid: Grid) -> Stored | None:
    """None where no type has these codes, or a weight is not on the grid: trained away from it, or
    a zero that the grid does not have."""
    (rows, columns), wide = weight.shape, grid.group or weight.shape[1]
    codes = grid.codes(weight)
    if columns % BLOCK or wide % BLOCK or not torch.equal(grid.values(codes), weight):
        return None

    def blocks(part: Tensor) -> Tensor:
        """[rows, blocks of 32 columns]."""
        return part.repeat_interleave(wide // BLOCK, 1).expand(rows, -1).contiguous()

    scale = blocks(grid.scale)
    if grid.format == "mxfp4":
        power = scale.frexp().exponent - 1 + 127
        packed = [power.to(torch.uint8).numpy()[..., None], _nibbles(_bytes(codes))]
        return Stored("MXFP4", _rows(packed))
    if grid.book is not None or not _is_half(scale):
        return None
    if grid.base is not None:
        base = blocks(grid.base)
        return _with_base(codes, scale, base, grid.bits) if _is_half(base) else None
    steps = codes - grid.zero.repeat_interleave(columns // grid.zero.shape[1], 1)
    return _without(steps, scale, wide)


def _without(steps: Tensor, scale: Tensor, wide: int) -> Stored | None:
    """`steps`: how many scales each weight is, whole numbers [rows, columns]."""
    low, high = int(steps.min()), int(steps.max())
    d = _halves(scale)
    if wide % 256 == 0 and low >= -1 and high <= 2:
        quarters = _bytes(steps + 1).reshape(len(steps), -1, 2, 4, 32)
        shifted = quarters << np.array([0, 2, 4, 6], np.uint8)[:, None]
        codes = np.bitwise_or.reduce(shifted, axis=3).reshape(len(steps), -1, 64)
        return Stored("TQ2_0", _rows([codes, d[:, ::8]]))
    if low >= -8 and high <= 7:
        return Stored("Q4_0", _rows([d, _nibbles(_bytes(steps + 8))]))
    if low >= -16 and high <= 15:
        codes = _bytes(steps + 16)
        return Stored("Q5_0", _rows([d, _fifth(codes), _nibbles(codes & 15)]))
    if low >= -128 and high <= 127:
        whole = steps.to(torch.int8).numpy().view(np.uint8).reshape(len(steps), -1, BLOCK)
        return Stored("Q8_0", _rows([d, whole]))
    return None


def _with_base(codes: Tensor, scale: Tensor, base: Tensor, bits: int) -> Stored | None:
    d, m, whole = _halves(scale), _halves(base), _bytes(codes)
    if bits <= 4:
        return Stored("Q4_1", _rows([d, m, _nibbles(whole)]))
    if bits == 5:
        return Stored("Q5_1", _rows([d, m, _fifth(whole), _nibbles(whole & 15)]))
    return None


def _is_half(part: Tensor) -> bool:
    return torch.equal(part.half().float(), part)


def _halves(part: Tensor) -> Bytes:
    """[rows, blocks] -> [rows, blocks, 2]."""
    made: Bytes = part.half().numpy()[..., None].astype("<f2").view(np.uint8)
    return made


def _bytes(codes: Tensor) -> Bytes:
    """[rows, columns] -> [rows, blocks, 32]."""
    made: Bytes = codes.to(torch.uint8).numpy().reshape(len(codes), -1, BLOCK)
    return made


def _nibbles(codes: Bytes) -> Bytes:
    """The first half of each block in the lower four bits, the other one above."""
    made: Bytes = codes[..., : BLOCK // 2] | codes[..., BLOCK // 2 :] << np.uint8(4)
    return made


def _fifth(codes: Bytes) -> Bytes:
    """The highest of five bits, the first code's lowest."""
    return np.packbits(codes >> np.uint8(4), axis=-1, bitorder="little")


def _rows(parts: list[Bytes]) -> Bytes:
    """Parts [rows, blocks, bytes] of each block, one after the other -> [rows, bytes]."""
    joined = np.concatenate(parts, axis=2)
    return np.ascontiguousarray(joined.reshape(len(joined), -1))
