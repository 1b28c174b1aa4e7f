"""Channel numbers of a pass's tensors, and which of them are one channel.

Every element of an activation bears the number of the channel that it belongs to; 0: of none. They
are kept for each storage, so that views have them for nothing."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from apportion.compressors.kinds.origins import elements, key

NONE = 0


class Labels:
    """Numbers of elements, by storage."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, StorageWeakRef]] = {}

    def of(self, tensor: Tensor) -> Tensor:
        """int64 in the tensor's shape; a view."""
        if tensor.layout != torch.strided or key(tensor) not in self._known:
            return torch.zeros(tensor.shape, dtype=torch.int64)
        flat, _ = self._known[key(tensor)]
        return flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def known(self, tensor: Tensor) -> bool:
        return tensor.layout == torch.strided and key(tensor) in self._known

    def set(self, tensor: Tensor, labels: Tensor) -> None:
        """Those of a tensor that an operation made or wrote to."""
        if tensor.layout != torch.strided:
            return
        if key(tensor) in self._known:
            flat = self._known[key(tensor)][0]
        else:
            if not bool(labels.any()):
                return
            flat = torch.zeros(elements(tensor), dtype=torch.int64)
            self._known[key(tensor)] = flat, StorageWeakRef(tensor.untyped_storage())
        flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset()).copy_(
            labels.expand(tensor.shape)
        )


@dataclass(frozen=True)
class Classes:
    """of: number -> its class, int64 [numbers]; locked: class -> why it stays; heads: classes that
    are heads of an attention -> multiply-accumulates of activations with each other that go with
    one, over the pass."""

    of: np.ndarray
    locked: dict[int, str]
    heads: dict[int, int]


@dataclass(frozen=True)
class _Fixed:
    """`chosen` stay for the reason if classes change along any of `dims` of `labels`; None: in any
    case."""

    labels: Tensor
    dims: Sequence[int] | None
    chosen: Tensor
    reason: str


@dataclass(frozen=True)
class _Loose:
    """Pairs that are one channel unless they are heads; `fixed`: what holds if they are."""

    pairs: np.ndarray
    fixed: _Fixed | None


class Book:
    """Numbers that were given out, pairs that are one channel, and what may not be removed."""

    def __init__(self) -> None:
        self.total = 1  # number 0 is none
        self._pairs: list[np.ndarray] = []
        self._loose: list[_Loose] = []
        self._fixed: list[_Fixed] = []
        self._heads: list[np.ndarray] = []
        self._macs = Counter[int]()
        self._parameters: list[tuple[int, int]] = []

    def fresh(self, count: int, parameter: bool = False) -> Tensor:
        """`count` new numbers, int64; of the elements of a `parameter`."""
        made = torch.arange(self.total, self.total + count)
        if parameter:
            self._parameters.append((self.total, self.total + count))
        self.total += count
        return made

    def of_parameter(self, labels: Tensor) -> bool:
        """Whether all numbers were given to one parameter's elements."""
        (own,) = collapsed(labels)
        own = own[own > 0]
        if not len(own):
            return False
        low, high = int(own.min()), int(own.max())
        at = bisect_right(self._parameters, (low, self.total)) - 1
        return at >= 0 and high < self._parameters[at][1]

    def join(self, one: Tensor, other: Tensor) -> None:
        """Element by element the same channel, where both have one."""
        if len(pairs := _pairs(one, other)):
            self._pairs.append(pairs)

    def join_unless_heads(
        self, one: Tensor, other: Tensor, dims: Sequence[int] = (), reason: str = ""
    ) -> None:
        """Element by element the same channel; if they turn out to be heads, `one` stays if it
        changes along any of `dims`, along which `other` is as long."""
        if len(pairs := _pairs(one, other)):
            (own,) = collapsed(one)
            self._loose.append(_Loose(pairs, _Fixed(own, dims, own, reason) if dims else None))

    def heads(self, labels: Tensor) -> None:
        """These are heads: what a product of activations takes apart, position by position."""
        (own,) = collapsed(labels)
        self._heads.append(torch.unique(own[own > 0]).numpy())

    def count(self, labels: Tensor, macs: int) -> None:
        """What one product for each of these numbers takes, of `macs` for all."""
        numbers, counts = np.unique(labels.numpy(), return_counts=True)
        for number, times in zip(numbers.tolist(), counts.tolist(), strict=True):
            self._macs[number] += times * macs // labels.numel()

    def lock(self, labels: Tensor, reason: str) -> None:
        """These channels stay."""
        (own,) = collapsed(labels)
        found = own[own > 0].unique()
        if len(found):
            self._fixed.append(_Fixed(found, None, found, reason))

    def lock_along(
        self, labels: Tensor, dims: Sequence[int], reason: str, chosen: Tensor | None = None
    ) -> None:
        """These channels (or those `chosen` of them) stay, if they change along any of `dims`: what
        looks like several may turn out to be one."""
        (own,) = collapsed(labels)
        self._fixed.append(_Fixed(own, dims, own if chosen is None else chosen.unique(), reason))

    def classes(self) -> Classes:
        """What all that was said comes to."""
        first = self._components(self._pairs)
        marked = np.concatenate([*self._heads, np.zeros(0, np.int64)])
        heads = np.zeros(self.total, bool)
        heads[first[marked]] = True
        pairs, fixed = list(self._pairs), list(self._fixed)
        for loose in self._loose:
            if not heads[first[loose.pairs]].any():
                pairs.append(loose.pairs)
            elif loose.fixed is not None:
                fixed.append(loose.fixed)
        classes = self._components(pairs)
        locked: dict[int, str] = {}
        for each in fixed:
            if each.dims is not None:
                own = torch.from_numpy(classes[each.labels.numpy()])
                if not set(each.dims) & set(varying(own)):
                    continue
            numbers = each.chosen[each.chosen > 0].numpy()
            for one in np.unique(classes[numbers]).tolist():
                locked.setdefault(one, each.reason)
        macs: dict[int, int] = dict.fromkeys(np.unique(classes[marked]).tolist(), 0)
        for number, count in self._macs.items():
            if (head := int(classes[number])) in macs:
                macs[head] += count
        return Classes(classes, locked, macs)

    def _components(self, pairs: Sequence[np.ndarray]) -> np.ndarray:
        all_pairs = np.concatenate([*pairs, np.zeros((0, 2), np.int64)])
        ones = np.ones(len(all_pairs), bool)
        shape = (self.total, self.total)
        graph = coo_array((ones, (all_pairs[:, 0], all_pairs[:, 1])), shape=shape)
        found: np.ndarray = connected_components(graph, directed=False)[1]
        return found


def _pairs(one: Tensor, other: Tensor) -> np.ndarray:
    """Of numbers that meet and differ, [pairs, 2]."""
    one, other = collapsed(one, other)
    one, other = one.flatten(), other.flatten()
    both = (one > 0) & (other > 0) & (one != other)
    found: np.ndarray = np.unique(torch.stack([one[both], other[both]], 1).numpy(), axis=0)
    return found


def varying(labels: Tensor) -> list[int]:
    """The dimensions along which the numbers change."""
    return [
        d
        for d in range(labels.dim())
        if labels.shape[d] > 1 and not bool((labels == labels.narrow(d, 0, 1)).all())
    ]


def collapsed(*labels: Tensor) -> Sequence[Tensor]:
    """All of one shape, cut to length 1 where none of them changes: batch and positions."""
    made: Iterable[Tensor] = labels
    for d in range(labels[0].dim()):
        if labels[0].shape[d] > 1 and all(
            bool((each == each.narrow(d, 0, 1)).all()) for each in made
        ):
            made = [each.narrow(d, 0, 1) for each in made]
    return list(made)
