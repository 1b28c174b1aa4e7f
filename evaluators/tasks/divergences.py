"""Kullback-Leibler divergences KL(dense || found) in nats, in float64, at least 0; gradients go
through `found`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST = 1e-7
"""Probabilities are kept as far as this from 0 and 1, as float32 rounds."""


def categorical(found: Tensor, dense: Tensor, dim: int) -> Tensor:
    """Of one outcome among those along `dim`, from logits; the result lacks that dimension."""
    target = F.log_softmax(dense.double(), dim)
    made = F.log_softmax(found.double(), dim)
    return F.kl_div(made, target, reduction="none", log_target=True).sum(dim).clamp_min(0)


def binary(found: Tensor, dense: Tensor) -> Tensor:
    """Of yes or no, from logits, element by element."""
    found, dense = found.double(), dense.double()
    yes = torch.sigmoid(dense) * (F.logsigmoid(dense) - F.logsigmoid(found))
    no = torch.sigmoid(-dense) * (F.logsigmoid(-dense) - F.logsigmoid(-found))
    return (yes + no).clamp_min(0)


def binary_of_probabilities(found: Tensor, dense: Tensor) -> Tensor:
    """Of yes or no, from probabilities, element by element."""
    found, dense = (x.double().clamp(_LEAST, 1 - _LEAST) for x in (found, dense))
    yes = dense * (dense.log() - found.log())
    no = (1 - dense) * ((1 - dense).log() - (1 - found).log())
    return (yes + no).clamp_min(0)
