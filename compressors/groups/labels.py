"""Channel numbers of a pass's tensors, and which of them are one channel.

Every element of an activation bears the number of the channel that it belongs to; 0: of none. They
are kept for each storage, so that views have them for nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


class Book:
    """Numbers that were given out, pairs that are one channel, and what may not be removed."""

    def __init__(self) -> None:
        self.total = 1  # number 0 is none
        self._pairs: list[np.ndarray] = []
        self._locks: list[tuple[np.ndarray, str]] = []

    def fresh(self, count: int) -> Tensor:
        """`count` new numbers, int64."""
        made = torch.arange(self.total, self.total + count)
        self.total += count
        return made

    def join(self, one: Tensor, other: Tensor) -> None:
        """Element by element the same channel, where both have one."""
        one, other = collapsed(one, other)
        one, other = one.flatten(), other.flatten()
        both = (one > 0) & (other > 0) & (one != other)
        if bool(both.any()):
            pairs = torch.stack([one[both], other[both]], 1).numpy()
            self._pairs.append(np.unique(pairs, axis=0))

    def join_all(self, labels: Tensor, dim: int) -> None:
        """All along a dimension are one channel."""
        first = labels.narrow(dim, 0, 1)
        self.join(labels, first.expand_as(labels))

    def lock(self, labels: Tensor, reason: str) -> None:
        """These channels stay."""
        found = torch.unique(labels)
        found = found[found > 0].numpy()
        if len(found):
            self._locks.append((found, reason))

    def classes(self) -> tuple[np.ndarray, dict[int, str]]:
        """Number -> class [total], and class -> why it stays."""
        pairs = np.concatenate([*self._pairs, np.zeros((0, 2), np.int64)])
        graph = coo_array(
            (np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(self.total, self.total)
        )
        _, classes = connected_components(graph, directed=False)
        locked: dict[int, str] = {}
        for numbers, reason in self._locks:
            for each in np.unique(classes[numbers]).tolist():
                locked.setdefault(each, reason)
        return classes, locked


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
