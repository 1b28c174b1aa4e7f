"""In which order a group's channels go, by other criteria than what their readers lose: what tools
for structured pruning offer, to be compared with it. A channel's weights are those of all
parameters that it lies in.

    @criterion("largest")
    def largest(weights: ChannelWeights, rng: np.random.Generator) -> Tensor:
        return -weights.values.abs().amax(1)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
    """values [channels, n]: all weights that go with each channel, float64; gradients: of the loss
    by them; squares: the mean over samples of the squares of each sample's own; None where the
    criterion did not say that it needs them."""

    values: Tensor
    gradients: Tensor | None = None
    squares: Tensor | None = None


Criterion = Callable[[ChannelWeights, np.random.Generator], Tensor]
"""Scores [channels]: the lowest goes first."""

_CRITERIA: dict[str, Criterion] = {}
_NEEDS: dict[str, str] = {}


def criterion(name: str, needs: str = "") -> Callable[[Criterion], Criterion]:
    """Make a criterion known by its name, and whether it needs `gradients` or `squares` of the
    weights."""

    def register(function: Criterion) -> Criterion:
        _CRITERIA[name], _NEEDS[name] = function, needs
        return function

    return register


def check_criterion(name: str) -> None:
    """Raises UnknownNameError."""
    if name != OBS and name not in _CRITERIA:
        raise UnknownNameError("criterion", name, [OBS, *_CRITERIA], "criterion")


def needs_gradients(name: str) -> bool:
    return _NEEDS.get(name) == "gradients"


def needs_squares(name: str) -> bool:
    return _NEEDS.get(name) == "squares"


def squared_gradients(model: nn.Module, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """Parameter -> the mean of its squared gradients, in its shape: the diagonal of the empirical
    Fisher information, which stands for that of the Hessian of a loss that is a negative
    log-likelihood. `losses`: of one sample each, scalars."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    squares = {name: torch.zeros_like(value) for name, value in parameters.items()}
    count = 0
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for own, gradient in zip(squares.values(), gradients, strict=True):
            if gradient is not None:
                own.addcmul_(gradient, gradient)
        count += 1
    shared = {id(parameters[name]): own / max(1, count) for name, own in squares.items()}
    return {
        name: shared[id(value)]
        for name, value in model.named_parameters(remove_duplicate=False)
        if id(value) in shared
    }


def order_by(
    name: str,
    model: nn.Module,
    group: ChannelGroup,
    rng: np.random.Generator,
    squares: Mapping[str, Tensor] | None = None,
) -> np.ndarray:
    """The group's channels, those that go first in front; equal ones in their order.

    Args:
        name: of the criterion.
        model: its parameters have gradients where the criterion needs them.
        group: whose channels are put in order.
        rng: of criteria that draw.
        squares: as `squared_gradients` gives them, where the criterion needs them.

    Raises:
        UnknownNameError: there is no such criterion.
        ConfigurationError: it needs what is not there.
    """
    check_criterion(name)
    scores = _CRITERIA[name](_weights(model, group, squares or {}), rng)
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


@criterion("taylor", needs="gradients")
def _taylor(weights: ChannelWeights, _: np.random.Generator) -> Tensor:
    """The first-order change of the loss (Molchanov et al. 2019, "Importance Estimation for Neural
    Network Pruning", eq. 8)."""
    if weights.gradients is None:
        raise ConfigurationError("criterion taylor: the model's parameters have no gradients")
    return (weights.values * weights.gradients).sum(1).square()


@criterion("hessian", needs="squares")
def _hessian(weights: ChannelWeights, _: np.random.Generator) -> Tensor:
    """The second-order change of the loss by the diagonal of its Hessian, 1/2 sum h_kk u_k^2 (LeCun
    et al. 1990, "Optimal Brain Damage", the saliencies of 2.2), with the empirical Fisher's
    diagonal for h: the mean over samples of squared gradients."""
    if weights.squares is None:
        raise ConfigurationError("criterion hessian: the model's parameters have no squares")
    return 0.5 * (weights.squares * weights.values.square()).sum(1)


@criterion("random")
def _random(weights: ChannelWeights, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random(len(weights.values)))


def _weights(
    model: nn.Module, group: ChannelGroup, squares: Mapping[str, Tensor]
) -> ChannelWeights:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    values: list[Tensor] = []
    gradients: list[Tensor] = []
    second: list[Tensor] = []
    for part in group.slices:
        if part.name not in parameters:
            continue  # a buffer
        parameter = parameters[part.name]
        values.append(_rows(parameter.detach(), part.dim, part.channel, group.size))
        if parameter.grad is not None:
            gradients.append(_rows(parameter.grad, part.dim, part.channel, group.size))
        if part.name in squares:
            second.append(_rows(squares[part.name], part.dim, part.channel, group.size))
    first, other = (
        torch.cat(own, 1) if len(own) == len(values) else None for own in (gradients, second)
    )
    return ChannelWeights(torch.cat(values, 1), first, other)


def _rows(value: Tensor, dim: int, channel: np.ndarray, size: int) -> Tensor:
    """[channels, n], float64; every channel lies in as many places of the dimension."""
    at = np.argsort(channel, kind="stable")
    at = at[channel[at] >= 0]
    return value.movedim(dim, 0)[torch.from_numpy(at)].double().reshape(size, -1)
