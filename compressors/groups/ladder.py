"""In which order a group's channels go: block by block over all layers that read them, the weights
that are left making up for what is gone.

Removing the columns Q of a layer costs at least 1/2 sum over rows of w_Q ([H^-1]_QQ)^-1 w_Q^T, and
changes w by -w_Q ([H^-1]_QQ)^-1 [H^-1]_Q,: ; H^-1 loses Q by the same step (Hassibi & Stork 1993;
Kurtic et al. 2023, "ZipLM", eq. 2 and 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apportion.compressors.groups.find import ChannelGroup
from apportion.compressors.groups.moments import Moments
from apportion.compressors.hessian import inverse
from apportion.compressors.layers import LayerSpec


@dataclass(frozen=True)
class Reader:
    """A layer that reads channels, as [groups, rows, d], with H^-1 [groups, d, d]; 0 there for
    columns that no input ever reaches. `whole`: its error if all its weights were gone."""

    layer: LayerSpec
    weight: Tensor
    hinv: Tensor
    mean: Tensor
    whole: float


@dataclass(frozen=True)
class Ladder:
    """order [channels]: which channel goes first, second, ...; losses [channels + 1], float64: what
    it costs to lack the first n of them, over all readers, each as a share of its whole error;
    lower is better."""

    order: np.ndarray
    losses: np.ndarray


def reader(layer: LayerSpec, weight: Tensor, moments: Moments, damping: float) -> Reader:
    """weight [rows, columns], as `to_matrix` gives it."""
    split = weight.double().reshape(layer.groups, -1, layer.columns)
    hinv = torch.zeros_like(moments.hessian)
    for g, hessian in enumerate(moments.hessian):
        found, alive = inverse(hessian, damping, layer.name)
        at = alive.nonzero().squeeze(1)
        hinv[g][at[:, None], at] = found
    whole = 0.5 * float(((split @ moments.hessian) * split).sum())
    return Reader(layer, split, hinv, moments.mean, whole)


def channel_ladder(group: ChannelGroup, readers: Mapping[str, Reader]) -> Ladder:
    """Remove the group's channels one by one, always the one that costs least."""
    states = [_State(readers[name], columns) for name, columns in group.readers.items()]
    alive = torch.ones(group.size, dtype=torch.bool)
    order, losses = [], [0.0]
    for _ in range(group.size):
        scores = sum(state.scores(alive) for state in states)
        assert isinstance(scores, Tensor)
        channel = int(scores.masked_fill(~alive, torch.inf).argmin())
        losses.append(losses[-1] + max(0.0, float(scores[channel])))
        for state in states:
            state.remove(channel)
        alive[channel] = False
        order.append(channel)
    return Ladder(np.array(order), np.array(losses))


class _State:
    """What is left of one reader. `at` [groups, channels, k]: the columns of each channel."""

    def __init__(self, reader: Reader, columns: np.ndarray) -> None:
        self._weight, self._hinv = reader.weight.clone(), reader.hinv.clone()
        self._share = 1 / reader.whole if reader.whole > 0 else 0.0
        self.at = _places(columns)

    def scores(self, alive: Tensor) -> Tensor:
        """What each channel would cost, [channels]."""
        total = torch.zeros(len(alive), dtype=torch.float64)
        for weight, hinv, at in zip(self._weight, self._hinv, self.at, strict=True):
            own = at[alive]
            blocks = hinv[own[:, :, None], own[:, None, :]]  # [channels, k, k]
            w = weight[:, own].movedim(0, 1)  # [channels, rows, k]
            total[alive] += _cost(w, blocks)
        return 0.5 * self._share * total

    def remove(self, channel: int) -> None:
        for g, at in enumerate(self.at):
            columns = at[channel]
            step = torch.linalg.pinv(
                self._hinv[g][columns[:, None], columns], hermitian=True
            ) @ self._hinv[g][columns]  # fmt: skip
            self._weight[g] -= self._weight[g][:, columns] @ step
            self._hinv[g] -= self._hinv[g][:, columns] @ step
            self._weight[g][:, columns] = 0


def _cost(w: Tensor, blocks: Tensor) -> Tensor:
    """w_Q block^-1 w_Q^T summed over rows, [channels]; w [channels, rows, k]. Columns that no input
    reaches have zeros in the block, and cost nothing."""
    dead = blocks.diagonal(dim1=1, dim2=2) <= 0
    blocks = blocks + torch.diag_embed(dead.double())
    w = w.masked_fill(dead[:, None, :], 0)
    scale = blocks.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    eye = torch.eye(blocks.shape[1], dtype=blocks.dtype)
    solved = torch.linalg.solve(blocks + 1e-10 * scale * eye, w.mT @ w)
    return solved.diagonal(dim1=1, dim2=2).sum(1)


def _places(columns: np.ndarray) -> Tensor:
    """[groups, channels, k]; every channel has as many columns as the others."""
    made: list[Tensor] = []
    for own in torch.from_numpy(columns):
        order = torch.argsort(own, stable=True)
        order = order[own[order] >= 0]
        made.append(order.reshape(int(own.max()) + 1, -1))
    return torch.stack(made)


def compensated(reader: Reader, gone: Sequence[np.ndarray] | np.ndarray) -> tuple[Tensor, Tensor]:
    """The layer's weights at their optimum without the columns `gone` (bool [groups, columns]).

    Returns:
        Weights [rows, columns], zeros in those columns, and what the layer's outputs lack on
        average, [rows]: its bias has to grow by that much. float64.
    """
    weight = reader.weight.clone()
    for g, own in enumerate(np.asarray(gone)):
        columns = torch.from_numpy(own.nonzero()[0])
        if not len(columns):
            continue
        block = reader.hinv[g][columns[:, None], columns]
        weight[g] -= weight[g][:, columns] @ _solved(block, reader.hinv[g][columns])
        weight[g][:, columns] = 0
    shift = ((reader.weight - weight) @ reader.mean[:, :, None]).squeeze(2)
    return weight.reshape(-1, weight.shape[2]), shift.reshape(-1)


def _solved(block: Tensor, right: Tensor) -> Tensor:
    """block^-1 right, where columns that no input reaches have zeros in both."""
    alive = block.diagonal() > 0
    made = torch.zeros_like(right)
    at = alive.nonzero().squeeze(1)
    made[at] = torch.linalg.solve(block[at[:, None], at], right[at])
    return made
