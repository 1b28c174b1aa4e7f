"""In which order a group's channels go: block by block over all layers that read them, the weights
that are left making up for what is gone.

Removing the columns Q of a layer costs at least 1/2 sum over rows of w_Q ([H^-1]_QQ)^-1 w_Q^T, and
changes w by -w_Q ([H^-1]_QQ)^-1 [H^-1]_Q,: ; H^-1 loses Q by the same step (Hassibi & Stork 1993;
Kurtic et al. 2023, "ZipLM", eq. 2 and 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apportion.compressors.groups.find import ChannelGroup
from apportion.compressors.groups.moments import Moments
from apportion.compressors.hessian import inverse
from apportion.compressors.layers import LayerSpec

_WIDE = 128
"""Rows that are collected before they are folded in."""
_RIDGE = 1e-10
"""Of the mean of a block's diagonal, which is added to it."""


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
    states = [
        each for name, columns in group.readers.items() for each in _states(readers[name], columns)
    ]
    period = max(1, _WIDE // max((state.k for state in states), default=1))
    left, gone = np.arange(group.size), torch.zeros(group.size, dtype=torch.bool)
    order, losses = [], [0.0]
    for _ in range(group.size):
        if int(gone.sum()) == period:
            for state in states:
                state.fold(~gone)
            left, gone = left[~gone.numpy()], gone[~gone]
        scores = torch.stack([state.scores() for state in states]).sum(0)
        at = int(scores.masked_fill_(gone, torch.inf).argmin())
        losses.append(losses[-1] + max(0.0, float(scores[at])))
        for state in states:
            state.remove(at)
        gone[at] = True
        order.append(int(left[at]))
    return Ladder(np.array(order), np.array(losses))


def _states(reader: Reader, columns: np.ndarray) -> Iterator[_State]:
    share = 1 / reader.whole if reader.whole > 0 else 0.0
    for weight, hinv, at in zip(reader.weight, reader.hinv, _places(columns), strict=True):
        own = at.flatten()
        w = weight[:, own]
        yield _State(_within(hinv, own), w.mT @ w, at.shape[1], share)


class _State:
    """What is left of what one matrix reads of a group. What a channel costs needs only H^-1 and
    the products G = w^T w of the weights' columns. In steps t, with a root R of ([H^-1]_QQ)^-1 =
    R^T R, u = R [H^-1]_Q,: and z = R G_Q,: - 1/2 R G_QQ R^T u, they lose

        H^-1 -= u^T u,    w -= w_Q R^T u,    G -= z^T u + u^T z;

    both are held as what they were, the rows of `u` and `z` since, and their diagonal blocks as
    they are; a channel's own rows are worked out when it goes (as elimination/factored.py does)."""

    def __init__(self, hinv: Tensor, products: Tensor, k: int, share: float) -> None:
        self.k, self._share = k, share
        self._hinv, self._products = hinv, products
        self._begin()

    def _begin(self) -> None:
        d, k = len(self._hinv), self.k
        self._inner, self._squares = (_blocks(m, k) for m in (self._hinv, self._products))
        self._dead = self._inner.diagonal(dim1=1, dim2=2) <= 0
        self._u = self._hinv.new_empty(max(_WIDE, k), d)
        self._z, self._rows = torch.empty_like(self._u), 0

    def scores(self) -> Tensor:
        """What each channel would cost, [channels]: half the sum over rows of w_Q ([H^-1]_QQ)^-1
        w_Q^T, as the trace of ([H^-1]_QQ)^-1 G_QQ. Columns that no input reaches have zeros in the
        block, and cost nothing."""
        diagonal = self._inner.diagonal(dim1=1, dim2=2)
        scale = diagonal.mean(1, keepdim=True)
        if self.k == 1:
            own = self._inner + _RIDGE * scale[:, :, None] + self._dead[:, :, None]
            cost = (self._squares / own).masked_fill_(self._dead[:, :, None], 0)[:, 0, 0]
        else:
            both = self._dead[:, :, None] | self._dead[:, None, :]
            block = self._inner + torch.diag_embed(_RIDGE * scale + self._dead.double())
            solved = torch.linalg.solve(block, self._squares.masked_fill(both, 0))
            cost = solved.diagonal(dim1=1, dim2=2).sum(1)
        return 0.5 * self._share * cost

    def remove(self, at: int) -> None:
        columns, k = slice(at * self.k, (at + 1) * self.k), self.k
        u, z = self._u[: self._rows], self._z[: self._rows]
        row = self._hinv[columns] - u[:, columns].T @ u
        products = self._products[columns] - z[:, columns].T @ u - u[:, columns].T @ z
        root = _root(row[:, columns])
        new_u, g = root @ row, root @ products
        new_z = g - 0.5 * (g[:, columns] @ root.T) @ new_u
        stop = self._rows + k
        self._u[self._rows : stop], self._z[self._rows : stop] = new_u, new_z
        self._rows = stop
        mine, theirs = (each.reshape(k, -1, k).movedim(1, 0) for each in (new_u, new_z))
        self._inner -= mine.mT @ mine
        change = theirs.mT @ mine
        self._squares -= change + change.mT
        self._inner[at] = torch.eye(k, dtype=row.dtype)  # no longer looked at
        self._squares[at] = 0

    def fold(self, stays: Tensor) -> None:
        """Take the rows into H^-1 and G, and leave out the channels that are gone."""
        keep = stays.repeat_interleave(self.k).nonzero().squeeze(1)
        u, z = (each[: self._rows].index_select(1, keep) for each in (self._u, self._z))
        self._hinv = _within(self._hinv, keep).addmm_(u.T, u, alpha=-1)
        change = z.T @ u
        self._products = _within(self._products, keep).sub_(change).sub_(change.T)
        self._begin()


def _within(matrix: Tensor, at: Tensor) -> Tensor:
    """Rows and columns `at`."""
    return matrix.index_select(0, at).index_select(1, at)


def _blocks(matrix: Tensor, k: int) -> Tensor:
    """[channels, k, k] of the diagonal, a copy."""
    channels = len(matrix) // k
    whole = matrix.reshape(channels, k, channels, k)
    return whole.diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()


def _root(block: Tensor) -> Tensor:
    """R with R^T R = block^-1; of what is singular, without that part."""
    values, vectors = torch.linalg.eigh(block)
    least = len(block) * torch.finfo(block.dtype).eps * values.abs().max()
    roots = torch.where(values > least, values.clamp_min(1e-300).rsqrt(), 0)
    return roots[:, None] * vectors.T


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
