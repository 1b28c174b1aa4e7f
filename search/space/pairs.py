"""Costs that pairs of layers have together, as arrays: what a candidate's pairs load, and what they
would at any other level of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from apportion.compressors.errors import SpaceError

PairTables = Mapping[tuple[int, int], np.ndarray]
"""(i, j), i < j, numbers of layers -> float64 [levels of i, levels of j]."""


def check_pairs(
    layers: Sequence[str], counts: Sequence[int], metric: str, tables: PairTables
) -> None:
    """Raise SpaceError where a table does not fit its two layers."""
    for (i, j), table in tables.items():
        if not 0 <= i < j < len(layers):
            raise SpaceError(
                f"pairs of {metric!r}: ({i}, {j}) are not two of the {len(layers)} layers, the "
                "lower number first"
            )
        what = f"pairs of {metric!r}: layers {layers[i]!r} and {layers[j]!r}"
        if np.shape(table) != (counts[i], counts[j]):
            raise SpaceError(
                f"{what} need a table of {counts[i]} x {counts[j]} values, not of shape "
                f"{np.shape(table)}"
            )
        if not np.isfinite(table).all():
            raise SpaceError(f"{what} have a value that is not finite")


class Pairs:
    """Of several budgets. `edges` [pairs, 2]: the layers i < j of each; `tables` [budgets, pairs,
    most levels, most levels]: their loads at each level of i and of j, 0 where there is no such
    level."""

    def __init__(self, counts: npt.NDArray[np.int64], budgets: Sequence[PairTables]) -> None:
        """`counts`: levels per layer. Tables of zeros are left out."""
        self._counts = counts
        most = int(counts.max())
        edges = sorted({e for tables in budgets for e, table in tables.items() if np.any(table)})
        self.edges = np.array(edges, dtype=np.int64).reshape(-1, 2)
        self.tables = np.zeros((len(budgets), len(edges), most, most))
        for b, tables in enumerate(budgets):
            for e, edge in enumerate(edges):
                if (table := tables.get(edge)) is not None:
                    self.tables[b, e, : len(table), : len(table[0])] = table
        self._numbers = np.arange(len(edges))
        # Each pair once for each of its layers, sorted by that one.
        owner = self.edges.ravel()
        order = np.argsort(owner, kind="stable")
        self._other = self.edges[:, ::-1].ravel()[order]
        self._degree = np.bincount(owner, minlength=len(counts))
        self._start = np.cumsum(self._degree) - self._degree
        self._edge, self._is_second = np.divmod(order, 2)

    def __len__(self) -> int:
        return len(self.edges)

    @cached_property
    def _towards(self) -> np.ndarray:
        """[2 pairs, levels of the other layer, budgets, own levels]"""
        first = self.tables.transpose(1, 3, 0, 2)
        second = self.tables.transpose(1, 2, 0, 3)
        turned = self._is_second.astype(bool)[:, None, None, None]
        return np.where(turned, second[self._edge], first[self._edge])

    @cached_property
    def there(self) -> np.ndarray:
        """Which of a pair's levels there are: bool [pairs, most levels, most levels]."""
        levels = np.arange(self.tables.shape[2]) < self._counts[:, None]
        first, second = levels[self.edges[:, 0]], levels[self.edges[:, 1]]
        return first[:, :, None] & second[:, None, :]

    def minima(self, tables: np.ndarray) -> np.ndarray:
        """Each level's least value in `tables` [pairs, most levels, most levels] (inf: no such
        level), summed over its layer's pairs: [layers, most levels]; 0 where there is no such
        level."""
        made = np.zeros((len(self._counts), tables.shape[1]))
        for layers, axis in ((self.edges[:, 0], 2), (self.edges[:, 1], 1)):
            least = tables.min(axis)
            np.add.at(made, layers, np.where(np.isfinite(least), least, 0.0))
        return made

    def loads(self, candidates: np.ndarray) -> np.ndarray:
        """Of `candidates` [n, layers] -> [budgets, n]."""
        i, j = self.edges.T
        return self.tables[:, self._numbers, candidates[:, i], candidates[:, j]].sum(2)

    def given(self, candidates: np.ndarray, rows: np.ndarray, layers: np.ndarray) -> np.ndarray:
        """What the pairs of layer `layers[k]` load at each of its levels while the others stay as
        in `candidates[rows[k]]` -> [budgets, k, most levels]."""
        degree = self._degree[layers]
        begin = np.cumsum(degree) - degree
        which = np.repeat(np.arange(len(layers)), degree)
        edge = np.arange(len(which)) + np.repeat(self._start[layers] - begin, degree)
        made = np.zeros((len(layers), self.tables.shape[0], self.tables.shape[2]))
        if len(which):
            parts = self._towards[edge, candidates[rows[which], self._other[edge]]]
            made[degree > 0] = np.add.reduceat(parts, begin[degree > 0], axis=0)
        return made.transpose(1, 0, 2)
