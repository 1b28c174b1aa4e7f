"""How one compressed weight is stored: `dense` values, or a `bitmask` of the non-zeros followed by their values.

An encoding never changes a value: `decode(encode(w)) == w` to the bit (negative zeros excepted, which come back positive from a
bitmask).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def encode(weight: Tensor) -> tuple[str, dict[str, Tensor]]:
    """The smaller of the two encodings of `weight` (any shape, floating point): its name and its parts, CPU tensors."""
    flat = weight.detach().to("cpu").contiguous().reshape(-1)
    mask = flat != 0
    packed = torch.from_numpy(np.packbits(mask.numpy()))
    values = flat[mask]
    if packed.numel() + values.numel() * values.element_size() < flat.numel() * flat.element_size():
        return "bitmask", {"mask": packed, "values": values}
    return "dense", {"values": flat.clone()}


def decode(encoding: str, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The weight of `shape` that `encode` was given. Raises ValueError when the parts do not fit the shape."""
    values = parts["values"]
    if encoding == "dense":
        return values.reshape(shape).clone()
    if encoding != "bitmask":
        raise ValueError(f"unknown encoding {encoding!r}")
    count = int(np.prod(shape))
    mask = torch.from_numpy(np.unpackbits(parts["mask"].numpy(), count=count).astype(bool))
    if int(mask.sum()) != values.numel():
        raise ValueError(f"{values.numel()} values for a mask of {int(mask.sum())}")
    weight = torch.zeros(count, dtype=values.dtype)
    weight[mask] = values
    return weight.reshape(shape)


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
