"""How one compressed weight is stored.

    dense           all values
    bitmask         one bit per weight, and the values of those that are not zero
    rowmask         one bit per row (output channel), and the values of the rows that are not all
                    zeros
    packedB         codes of B bits per weight on the grid of its row, or of all rows:
                    scale (q - zero)
    bitmask+packedB one bit per weight, and the codes of those that are not zero
    rowmask+packedB likewise

An encoding never changes a value: `decode(encode(w)) == w` to the bit (negative zeros excepted,
which come back positive)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from apportion.compressors.grids import Grid

PARTS = ("codes", "mask", "scale", "values", "zero")


def encode(weight: Tensor, grid: Grid | None = None) -> tuple[str, dict[str, Tensor]]:
    """The smallest encoding of `weight` [rows, ...] (floating point; on `grid` [rows, 1] where one
    is given): its name and its parts, CPU tensors. Raises ValueError for a weight that is not on
    its grid."""
    flat = weight.detach().to("cpu").contiguous().reshape(-1)
    mask = flat != 0
    masks = {"bitmask": (mask, _packed_mask(mask))}
    if weight.dim() > 1 and flat.numel():
        rows = mask.reshape(len(weight), -1).any(1)
        masks["rowmask"] = (rows.repeat_interleave(flat.numel() // len(weight)), _packed_mask(rows))
    options: dict[str, dict[str, Tensor]] = {"dense": {"values": flat.clone()}}
    options |= {name: {"mask": packed, "values": flat[of]} for name, (of, packed) in masks.items()}
    if grid is not None:
        codes = (
            grid.codes(weight.detach().to("cpu").reshape(len(weight), -1))
            .reshape(-1)
            .to(torch.uint8)
        )
        parts = {
            "scale": grid.scale.reshape(-1).clone(),
            "zero": grid.zero.reshape(-1).to(torch.uint8),
        }
        options[f"packed{grid.bits}"] = {**parts, "codes": _pack(codes, grid.bits)}
        for masked, (of, packed) in masks.items():
            options[f"{masked}+packed{grid.bits}"] = {
                **parts,
                "mask": packed,
                "codes": _pack(codes[of], grid.bits),
            }
    name = min(options, key=lambda option: stored_bits(options[option]))
    if grid is not None and not torch.equal(
        decode(name, options[name], tuple(weight.shape)), weight.detach().cpu() + 0.0
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
    if packing.startswith("packed"):
        codes = _unpack(parts["codes"], int(packing.removeprefix("packed")), int(mask.sum()))
        rows = torch.arange(shape[0]).repeat_interleave(count // shape[0])[mask]
        scale, zero = (parts[name].float().expand(shape[0])[rows] for name in ("scale", "zero"))
        values = scale * (codes.float() - zero)
    elif packing in ("bitmask", "rowmask"):
        values = parts["values"]
    else:
        raise ValueError(f"unknown encoding {encoding!r}")
    if int(mask.sum()) != values.numel():
        raise ValueError(f"{values.numel()} values for a mask of {int(mask.sum())}")
    weight = torch.zeros(count, dtype=values.dtype)
    weight[mask] = values
    return weight.reshape(shape)


def _packed_mask(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.numpy()))


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Codes below 2^bits, uint8 [n], as a stream of bits, the highest first; zero-padded to whole
    bytes."""
    stream = np.unpackbits(codes.numpy()[:, None], axis=1)[:, 8 - bits :]
    return torch.from_numpy(np.packbits(stream.reshape(-1)))


def _unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `_pack`. Raises ValueError when there are too few bits."""
    if packed.numel() != -(-count * bits // 8):
        raise ValueError(f"{packed.numel()} bytes for {count} codes of {bits} bits")
    stream = np.unpackbits(packed.numpy(), count=count * bits).reshape(count, bits)
    whole = np.zeros((count, 8), dtype=np.uint8)
    whole[:, 8 - bits :] = stream
    return torch.from_numpy(np.packbits(whole, axis=1)[:, 0])


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
