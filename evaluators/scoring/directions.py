"""Directions of a sample's logits in which its divergence curves: vectors v whose squares v v^T are
the Hessian of KL(dense || z) at the dense model's logits z, in full or in expectation.

Of one distribution over c outcomes the Hessian is H = diag(p) - p p^T."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from apportion.evaluators.tasks.distribution import Distribution

_HALVINGS = 100
"""Of the interval that holds an eigenvalue: to the last bit."""


def directions(found: Sequence[Distribution], generator: torch.Generator) -> list[Tensor]:
    """One vector for the logits of one sample's distributions, in parts of their shapes.

    A single distribution gives sqrt(lambda) u of H's largest eigenvalue lambda: nothing is random,
    and the rest of H, which hardly orders layers otherwise, is left out. Several positions, as of a
    text's tokens, or several distributions: sqrt(weight) A r with A A^T = H and random signs r, of
    which the expected square is all of the Hessian.

    Args:
        found: of a single sample: logits [1, ...].
        generator: of the random signs; on the CPU.

    Returns:
        For each distribution a tensor in its logits' shape, detached.
    """
    if settled(found):
        (own,) = found
        logits = own.logits.detach()
        p = logits.double().softmax(-1).cpu().numpy().reshape(-1)
        scale = float(own.weight) ** 0.5
        return [torch.from_numpy(scale * steepest(p)).to(logits).reshape(logits.shape)]
    return [_signed(own, generator) for own in found]


def settled(found: Sequence[Distribution]) -> bool:
    """Whether `directions` leaves nothing to chance: one distribution at one position."""
    return len(found) == 1 and not found[0].binary and found[0].weight.numel() == 1


def steepest(p: np.ndarray) -> np.ndarray:
    """sqrt(lambda) u of the largest eigenpair of diag(p) - p p^T, for probabilities p float64 [c].

    lambda is the root of sum p_i^2 / (p_i - lambda) = 1 between the two largest p (Golub 1973, the
    secular equation), and u_i goes as p_i / (p_i - lambda)."""
    vector = np.zeros_like(p)
    if len(p) < 2:
        return vector
    second, first = np.argsort(p)[-2:]
    low, high = float(p[second]), float(p[first])
    if high - low <= 1e-12 * high:  # two that are equally likely: one against the other
        vector[first], vector[second] = (high / 2) ** 0.5, -((high / 2) ** 0.5)
        return vector
    squares = p * p
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if np.sum(squares / (p - middle)) < 1:
            low = middle
        else:
            high = middle
    gaps = p - 0.5 * (low + high)
    if not gaps.all():
        return vector  # all the probability is one outcome's: nothing curves
    vector = p / gaps
    length = float(np.linalg.norm(vector))
    return vector * (high**0.5 / length)


def _signed(own: Distribution, generator: torch.Generator) -> Tensor:
    """sqrt(weight) A r: A = diag(sqrt p) - p sqrt(p)^T, or sqrt(p (1 - p)) of yes or no."""
    logits = own.logits.detach()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    signs = torch.randint(0, 2, logits.shape, generator=generator, dtype=torch.int8)
    r = (2 * signs - 1).to(logits)
    weight = own.weight.detach().to(logits).sqrt()
    if own.binary:
        spread = (logits.sigmoid() * (-logits).sigmoid()).sqrt()
        return (weight * spread * r).to(own.logits.dtype)
    p = logits.softmax(-1)
    moved = p.sqrt() * r
    moved = moved - p * moved.sum(-1, keepdim=True)
    return (weight[..., None] * moved).to(own.logits.dtype)
