"""What a search minimises: calibration loss, divergence from the dense model's outputs, or error
rate. Lower is better."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from apportion.compressors.errors import UnknownNameError

Criterion = Callable[[Tensor, Tensor, Tensor], Tensor]


def _loss(outputs: Tensor, labels: Tensor, _dense: Tensor) -> Tensor:
    return F.cross_entropy(outputs.double(), labels, reduction="none")


def _kl(outputs: Tensor, _labels: Tensor, dense: Tensor) -> Tensor:
    target = F.log_softmax(dense.double(), dim=1)
    return F.kl_div(
        F.log_softmax(outputs.double(), dim=1), target, reduction="none", log_target=True
    ).sum(1)


def _error(outputs: Tensor, labels: Tensor, _dense: Tensor) -> Tensor:
    return (outputs.argmax(1) != labels).double()


CRITERIA: dict[str, Criterion] = {"loss": _loss, "kl": _kl, "error": _error}
"""Name -> function of (outputs [n, classes], labels [n], dense model's outputs [n, classes]) to
float64 [n]: `loss` cross-entropy in nats, `kl` KL(dense || compressed) in nats, `error` 1 for a
wrong answer."""


def criterion(name: str) -> Criterion:
    """Raises UnknownNameError."""
    if name not in CRITERIA:
        raise UnknownNameError("fitness", name, CRITERIA)
    return CRITERIA[name]


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Share of right answers in percent, in [0, 100]; higher is better. outputs [n, classes],
    labels [n]."""
    return (
        100.0 * float((outputs.argmax(1) == labels).double().mean())
        if len(labels)
        else float("nan")
    )


def needs_dense_outputs(name: str) -> bool:
    return name == "kl"


EMPTY = torch.empty(0)
"""Stands for the dense outputs where `needs_dense_outputs` is False."""
