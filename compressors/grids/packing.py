"""Codes of fewer than eight bits as a stream of bits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes below 2^bits, uint8 [n], as a stream of bits, the highest first; zero-padded to whole
    bytes."""
    stream = np.unpackbits(codes.numpy()[:, None], axis=1)[:, 8 - bits :]
    return torch.from_numpy(np.packbits(stream.reshape(-1)))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack`. Raises ValueError when there are too few bits."""
    if packed.numel() != -(-count * bits // 8):
        raise ValueError(f"{packed.numel()} bytes for {count} codes of {bits} bits")
    stream = np.unpackbits(packed.numpy(), count=count * bits).reshape(count, bits)
    whole = np.zeros((count, 8), dtype=np.uint8)
    whole[:, 8 - bits :] = stream
    return torch.from_numpy(np.packbits(whole, axis=1)[:, 0])
