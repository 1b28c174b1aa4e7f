"""Samples without their padding: those of one length together, cut to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def by_length(inputs: Mapping[str, Tensor], mask: Tensor) -> list[dict[str, Tensor]]:
    """What a model is called with by keyword, in parts of equal length, the shortest first.

    Args:
        inputs: tensors [n, ...]; those that are [n, positions, ...] are cut.
        mask: [n, positions]: 0 (False) where a sample is padded, which is behind its end. Samples
            that are masked elsewhere too, and those that are padding alone, stay whole.

    Returns:
        For each length the samples that have it, in their order.
    """
    there = mask.bool()
    positions = there.shape[1]
    lengths = there.sum(1)
    prefix = torch.arange(positions, device=mask.device) < lengths[:, None]
    plain = (prefix == there).all(1) & (lengths > 0)
    lengths = torch.where(plain, lengths, positions)
    parts = []
    for length in lengths.unique().tolist():
        chosen = lengths == length
        parts.append(
            {
                name: tensor[chosen, :length]
                if tensor.shape[1:2] == (positions,)
                else tensor[chosen]
                for name, tensor in inputs.items()
            }
        )
    return parts


def without_padding(inputs: Any) -> list[Any]:
    """What a model is called with, in parts of equal length where it is called with texts. Else as
    it is."""
    mask = mask_of(inputs)
    return [inputs] if mask is None else [*by_length(inputs, mask)]


def mask_of(inputs: Any) -> Tensor | None:
    """Which positions of texts count, where a model is called with texts: by keyword,
    `attention_mask` [n, positions] of whole numbers among them."""
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    texts = isinstance(mask, Tensor) and mask.dim() == 2 and not mask.is_floating_point()
    return mask if texts else None
