"""How one compressed weight is stored.

    dense           all values
    bitmask         one bit per weight, and the values of those that are not zero
    rowmask         one bit per row (output channel), and the values of the rows that are not all
                    zeros
    packedB         codes of B bits per weight on the grid of its row, or of all rows:
                    scale (q - zero)
    FORMAT          codes of a weight format (w4g128, mxfp4, ...), with the scales that it keeps
    bitmask+packedB, bitmask+FORMAT    one bit per weight, and the codes of those that are not zero
    rowmask+packedB, rowmask+FORMAT    likewise

Masks and codes of a FORMAT run through the weight as its matrix [rows, columns] does, channel last
(a block of columns shares a scale); all others through the weight as it stands.

An encoding never changes a value: `decode(encode(w)) == w` to the bit (negative zeros excepted,
which come back positive)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from apportion.compressors import formats
from apportion.compressors.grids import Grid
from apportion.compressors.grids.packing import pack, unpack

_OWN = ("codes", "mask", "values")
"""Parts that are no format's."""


def encode(weight: Tensor, grid: Grid | None = None) -> tuple[str, dict[str, Tensor]]:
    """The smallest encoding of `weight` [rows, ...] (floating point; on `grid` [rows, 1] where one
    is given): its name and its parts, CPU tensors. Raises ValueError for a weight that is not on
    its grid."""
    there = weight.detach().to("cpu")
    options = _by_values(there)
    if grid is not None:
        options |= _by_codes(there, grid)
    name = min(options, key=lambda option: stored_bits(options[option]))
    if grid is not None and not torch.equal(
        decode(name, options[name], tuple(weight.shape)), there + 0.0
    ):
        raise ValueError("the weights are not on their grid")
    return name, options[name]


def decode(encoding: str, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The weight of `shape` that `encode` was given. Raises ValueError when the parts do not fit
    the shape."""
    count = int(np.prod(shape))
    if encoding == "dense":
        return parts["values"].reshape(shape).clone()
    masked, _, packing = encoding.rpartition("+") if "+" in encoding else (encoding, "", encoding)
    mask = torch.ones(count, dtype=torch.bool)
    if masked in ("bitmask", "rowmask"):
        bits = count if masked == "bitmask" else shape[0]
        there = np.unpackbits(parts["mask"].numpy(), count=bits).astype(bool)
        mask = torch.from_numpy(there).repeat_interleave(count // max(1, bits))
    if grid := read_grid(packing, parts, shape[0]):
        values = _values(unpack(parts["codes"], grid.bits, int(mask.sum())), grid, mask, shape[0])
    elif packing in ("bitmask", "rowmask"):
        values = parts["values"]
    else:
        raise ValueError(f"unknown encoding {encoding!r}")
    if int(mask.sum()) != values.numel():
        raise ValueError(f"{values.numel()} values for a mask of {int(mask.sum())}")
    weight = torch.zeros(count, dtype=values.dtype)
    weight[mask] = values
    if grid is None or not grid.format:
        return weight.reshape(shape)
    return weight.reshape(shape[0], *shape[2:], *shape[1:2]).movedim(-1, 1).contiguous()


def read_grid(encoding: str, parts: Mapping[str, Tensor], rows: int) -> Grid | None:
    """The grid of a weight whose encoding keeps codes; None for others. Raises ValueError when
    the parts do not fit the rows."""
    packing = encoding.rpartition("+")[2]
    if packing.startswith("packed"):
        scale, zero = (parts[name].float().reshape(-1, 1) for name in ("scale", "zero"))
        return Grid(scale, zero, int(packing.removeprefix("packed")))
    if (own := formats.find(packing)) is None:
        return None
    kept = {name: part for name, part in parts.items() if name not in _OWN}
    grid: Grid = own.module.read(own, kept, rows)
    return grid


def _by_values(weight: Tensor) -> dict[str, dict[str, Tensor]]:
    flat = weight.contiguous().reshape(-1)
    masked = {name: {"mask": packed, "values": flat[of]} for name, of, packed in _masks(weight)}
    return {"dense": {"values": flat.clone()}, **masked}


def _by_codes(weight: Tensor, grid: Grid) -> dict[str, dict[str, Tensor]]:
    if own := formats.find(grid.format):
        name, parts = own.name, own.module.store(own, grid)
        matrix = weight.movedim(1, -1)
    elif not grid.plain:
        raise ValueError(f"weight format {grid.format!r} is not registered here")
    else:
        name, matrix = f"packed{grid.bits}", weight
        parts = {
            "scale": grid.scale.reshape(-1).clone(),
            "zero": grid.zero.reshape(-1).to(torch.uint8),
        }
    codes = grid.codes(matrix.reshape(len(weight), -1)).reshape(-1).to(torch.uint8)
    found = {name: {**parts, "codes": pack(codes, grid.bits)}}
    for masked, of, packed in _masks(matrix):
        found[f"{masked}+{name}"] = {**parts, "mask": packed, "codes": pack(codes[of], grid.bits)}
    return found


def _masks(weight: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """By name: which weights are there, flattened; and as it is stored."""
    flat = weight.reshape(-1)
    mask = flat != 0
    found = [("bitmask", mask, _packed_mask(mask))]
    if weight.dim() > 1 and flat.numel():
        rows = mask.reshape(len(weight), -1).any(1)
        every = rows.repeat_interleave(flat.numel() // len(weight))
        found.append(("rowmask", every, _packed_mask(rows)))
    return found


def _values(codes: Tensor, grid: Grid, mask: Tensor, rows: int) -> Tensor:
    """Codes of the weights that are there -> their values, float32."""
    if grid.plain:  # of those alone
        which = torch.arange(rows).repeat_interleave(len(mask) // rows)[mask]
        scale, zero = (t.reshape(-1).expand(rows)[which] for t in (grid.scale, grid.zero))
        return scale * (codes.float() - zero)
    every = torch.zeros(len(mask), dtype=torch.uint8)
    every[mask] = codes
    return grid.values(every.reshape(rows, -1)).reshape(-1)[mask]


def _packed_mask(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.numpy()))


def stored_bits(parts: Mapping[str, Tensor]) -> int:
    """Bits that the parts take on disk, headers apart."""
    return sum(8 * part.numel() * part.element_size() for part in parts.values())


def checksum(parts: Mapping[str, Tensor]) -> str:
    """SHA-256 over the parts' names, types, shapes and bytes, in order of name; 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        part = parts[name].contiguous()
        digest.update(f"{name}:{part.dtype}:{tuple(part.shape)};".encode())
        digest.update(part.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
