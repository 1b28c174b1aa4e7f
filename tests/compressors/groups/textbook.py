"""Ladders of channels by the letter of the equations: the oracle of the faster elimination."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from apportion.compressors.groups.find import ChannelGroup
from apportion.compressors.groups.ladder import Ladder, Reader


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
