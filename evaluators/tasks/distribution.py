"""What a model says of outcomes, as distributions that its outputs are the logits of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Distribution:
    """Of each sample at each of any number of positions, one outcome among some, or, where
    `binary`, yes or no.

    A task's divergence is the sum, over its distributions and their positions, of `weight` times
    KL(dense || found) in nats.

    logits: [n, ..., outcomes], or [n, ...] where binary; gradients go through.
    weight: [n, ...], at least 0; 0 where a position does not count.
    """

    logits: Tensor
    weight: Tensor
    binary: bool = False
