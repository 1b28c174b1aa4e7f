"""In which order a group's channels go, by other criteria than what their readers lose: what tools
for structured pruning offer, to be compared with it. A channel's weights are those of all
parameters that it lies in.

    @criterion("largest")
    def largest(weights: ChannelWeights, rng: np.random.Generator) -> Tensor:
        return -weights.values.abs().amax(1)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from apportion.compressors.errors import ConfigurationError, UnknownNameError
from apportion.compressors.groups.find import ChannelGroup

OBS = "obs"
"""The elimination of compressors/groups/ladder.py."""


@dataclass(frozen=True)
class ChannelWeights:
    """values [channels, n]: all weights that go with each channel, float64; gradients: of the mean
    loss by them, or None."""

    values: Tensor
    gradients: Tensor | None


Criterion = Callable[[ChannelWeights, np.random.Generator], Tensor]
"""Scores [channels]: the lowest goes first."""

_CRITERIA: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Make a criterion known by its name."""

    def register(function: Criterion) -> Criterion:
        _CRITERIA[name] = function
        return function

    return register


def check_criterion(name: str) -> None:
    """Raises UnknownNameError."""
    if name != OBS and name not in _CRITERIA:
        raise UnknownNameError("criterion", name, [OBS, *_CRITERIA], "criterion")


def needs_gradients(name: str) -> bool:
    return name == "taylor"


def order_by(
    name: str, model: nn.Module, group: ChannelGroup, rng: np.random.Generator
) -> np.ndarray:
    """The group's channels, those that go first in front; equal ones in their order. The model's
    parameters have gradients where the criterion needs them."""
    check_criterion(name)
    scores = _CRITERIA[name](_weights(model, group), rng)
    return torch.argsort(scores, stable=True).numpy()


@criterion("l1")
def _l1(weights: ChannelWeights, _: np.random.Generator) -> Tensor:
    return weights.values.abs().sum(1)


@criterion("l2")
def _l2(weights: ChannelWeights, _: np.random.Generator) -> Tensor:
    return weights.values.square().sum(1)


@criterion("fpgm")
def _fpgm(weights: ChannelWeights, _: np.random.Generator) -> Tensor:
    """Nearest to the geometric median: the least sum of distances to the others (He et al. 2019,
    "Filter Pruning via Geometric Median", eq. 3)."""
    return torch.cdist(weights.values, weights.values).sum(1)


@criterion("taylor")
def _taylor(weights: ChannelWeights, _: np.random.Generator) -> Tensor:
    """The first-order change of the loss (Molchanov et al. 2019, "Importance Estimation for Neural
    Network Pruning", eq. 8)."""
    if weights.gradients is None:
        raise ConfigurationError("criterion taylor: the model's parameters have no gradients")
    return (weights.values * weights.gradients).sum(1).square()


@criterion("random")
def _random(weights: ChannelWeights, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random(len(weights.values)))


def _weights(model: nn.Module, group: ChannelGroup) -> ChannelWeights:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    values, gradients = [], []
    for part in group.slices:
        if part.name not in parameters:
            continue  # a buffer
        parameter = parameters[part.name]
        values.append(_rows(parameter.detach(), part.dim, part.channel, group.size))
        if parameter.grad is not None:
            gradients.append(_rows(parameter.grad, part.dim, part.channel, group.size))
    whole = torch.cat(gradients, 1) if len(gradients) == len(values) else None
    return ChannelWeights(torch.cat(values, 1), whole)


def _rows(value: Tensor, dim: int, channel: np.ndarray, size: int) -> Tensor:
    """[channels, n], float64; every channel lies in as many places of the dimension."""
    at = np.argsort(channel, kind="stable")
    at = at[channel[at] >= 0]
    return value.movedim(dim, 0)[torch.from_numpy(at)].double().reshape(size, -1)
