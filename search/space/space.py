"""SearchSpace: levels per layer, their costs, alone and in pairs, budgets, and additive errors;
feasibility."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from apportion.compressors.errors import SpaceError
from apportion.compressors.levels import Candidate
from apportion.search.space.pairs import Pairs, PairTables, check_pairs

ROUNDING = 1e-12
"""A total within this relative distance above a bound meets it: costs are summed in floating
point."""


@dataclass(frozen=True)
class SearchSpace:
    """What an algorithm sees of a problem.

    levels[l]: names of layer l's levels. costs[metric][l]: cost of layer l at each of them, float64
    [n_levels]; base[metric]: the cost of all that is not compressed; dense[metric]: the whole dense
    model's; budgets[metric]: upper bound on a profile's total, base included, in the metric's own
    unit. errors[l]: additive error of each level, float64 [n_levels], lower is better (a measured
    rise may be slightly negative). pairs[metric][i, j], i < j: what layers i and j cost together
    beside their own costs, float64 [levels of i, levels of j]. Raises SpaceError when these do not
    fit together."""

    layers: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    costs: dict[str, tuple[np.ndarray, ...]]
    base: dict[str, float]
    dense: dict[str, float]
    budgets: dict[str, float]
    errors: tuple[np.ndarray, ...]
    pairs: dict[str, dict[tuple[int, int], np.ndarray]] = field(default_factory=dict)
    solved: dict[str, Candidate] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """What solvers found, so that nothing is solved twice."""

    def __post_init__(self) -> None:
        counts = [len(levels) for levels in self.levels]
        if not self.layers or len(counts) != len(self.layers) or not all(counts):
            raise SpaceError(
                "a search space needs at least one layer, and at least one level for each"
            )
        tables = {
            "errors": self.errors,
            **{f"costs of {metric!r}": table for metric, table in self.costs.items()},
        }
        for what, table in tables.items():
            if [len(row) for row in table] != counts:
                raise SpaceError(
                    f"{what}: one value per layer and level is needed ({counts} per layer)"
                )
            for layer, row in zip(self.layers, table, strict=True):
                if not np.isfinite(row).all():
                    raise SpaceError(f"{what}: layer {layer!r} has a value that is not finite")
        for metric in self.budgets:
            if not {metric} <= self.costs.keys() & self.base.keys() & self.dense.keys():
                raise SpaceError(f"budget {metric!r}: costs, base and dense are needed for it")
        for metric, pairs in self.pairs.items():
            if metric not in self.costs:
                raise SpaceError(f"pairs of {metric!r}: the layers' own costs are needed, too")
            check_pairs(self.layers, counts, metric, pairs)

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Number of levels per layer, [layers]."""
        return np.array([len(levels) for levels in self.levels])

    @cached_property
    def error_table(self) -> np.ndarray:
        """errors, [layers, most levels], inf where a layer has no such level."""
        return self.pad(self.errors)

    @cached_property
    def load_table(self) -> np.ndarray:
        """Cost over what the budget leaves for it, [budgets, layers, most levels]: a profile is
        feasible when its loads, and those of its pairs (`coupling`), sum to `limits` at most in
        every budget. inf where a layer has no such level."""
        loads = [self.pad(self.costs[metric]) / self._scale(metric) for metric in self.budgets]
        return np.array(loads).reshape(len(loads), *self.error_table.shape)

    @cached_property
    def coupling(self) -> Pairs | None:
        """Loads of the budgeted metrics' pairs; None where costs are additive."""
        made = Pairs(self.counts, [self._pair_loads(metric) for metric in self.budgets])
        return made if len(made) else None

    def _pair_loads(self, metric: str) -> PairTables:
        pairs, scale = self.pairs.get(metric, {}), self._scale(metric)
        return {edge: table / scale for edge, table in pairs.items()}

    @cached_property
    def limits(self) -> np.ndarray:
        """What loads may sum to, [budgets]."""
        return np.array(
            [(bound - self.base[m]) / self._scale(m) for m, bound in self.budgets.items()]
        )

    @cached_property
    def order(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Per layer: its level indices from the least to the most compressed, by mean cost over the
        budgeted metrics (all metrics where there is no budget), each relative to the layer's
        most_expensive level; ties by error. A pair's cost counts as where the other layer makes it
        the highest: of products, where that one is least compressed."""
        metrics = list(self.budgets) or list(self.costs)
        orders = []
        for layer in range(len(self.layers)):
            relative = np.zeros(self.counts[layer])
            for metric in metrics:
                row = self.costs[metric][layer]
                for (i, j), table in self.pairs.get(metric, {}).items():
                    if layer in (i, j):
                        row = row + table.max(1 if layer == i else 0)
                relative = relative + row / max(float(row.max()), 1e-300)
            orders.append(np.lexsort((self.errors[layer], -relative)))
        return tuple(orders)

    @cached_property
    def position(self) -> npt.NDArray[np.int64]:
        """Inverse of `order`: [layers, most levels], how many levels of the layer are less
        compressed."""
        table = np.zeros(self.error_table.shape, dtype=np.int64)
        for layer, order in enumerate(self.order):
            table[layer, order] = np.arange(len(order))
        return table

    @cached_property
    def order_table(self) -> npt.NDArray[np.int64]:
        """`order` as [layers, most levels]; what stands behind a layer's last level means
        nothing."""
        return np.array([np.resize(row, self.error_table.shape[1]) for row in self.order])

    def pad(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Ragged rows as [layers, most levels], inf where a layer has no such level."""
        table = np.full((len(self.layers), int(self.counts.max())), np.inf)
        for layer, row in enumerate(rows):
            table[layer, : len(row)] = row
        return table

    def validate(self, candidate: Sequence[int]) -> Candidate:
        """The candidate as a tuple of Python ints. Raises SpaceError."""
        if len(candidate) != len(self.layers):
            raise SpaceError(
                f"a candidate of {len(candidate)} levels for {len(self.layers)} layers"
            )
        for layer, index, count in zip(self.layers, candidate, self.counts, strict=True):
            if not 0 <= index < count:
                raise SpaceError(
                    f"layer {layer!r}: level index {index}, valid are 0 to {count - 1}"
                )
        return tuple(int(index) for index in candidate)

    def total(self, metric: str, candidate: Sequence[int]) -> float:
        """A candidate's cost, base and pairs included, in the metric's unit."""
        alone = sum(row[i] for row, i in zip(self.costs[metric], candidate, strict=True))
        pairs = self.pairs.get(metric, {}).items()
        together = sum(table[candidate[i], candidate[j]] for (i, j), table in pairs)
        return self.base[metric] + float(alone + together)

    def error(self, candidate: Sequence[int]) -> float:
        """A candidate's additive error; lower is better."""
        return float(sum(row[i] for row, i in zip(self.errors, candidate, strict=True)))

    def loads(self, candidate: Sequence[int] | np.ndarray) -> np.ndarray:
        """Summed loads of a candidate, [budgets]."""
        alone = self.load_table[:, np.arange(len(self.layers)), list(candidate)].sum(1)
        if self.coupling is None:
            return alone
        return alone + self.coupling.loads(np.array([candidate]))[:, 0]

    def loads_of(self, candidates: np.ndarray) -> np.ndarray:
        """Summed loads of `candidates` [n, layers], [budgets, n]."""
        alone = self.load_table[:, np.arange(candidates.shape[1]), candidates].sum(2)
        return alone if self.coupling is None else alone + self.coupling.loads(candidates)

    def loads_beside(self, candidate: Sequence[int] | np.ndarray) -> np.ndarray:
        """Loads of each level of each layer while the others stay as in `candidate`, a pair's
        counted in full for each of its layers: [budgets, layers, most levels], inf where there is
        no such level. Without pairs `load_table`, whatever the candidate."""
        if self.coupling is None:
            return self.load_table
        layers = np.arange(len(self.layers))
        return self.load_table + self.coupling.given(
            np.array([candidate]), np.zeros_like(layers), layers
        )

    def changed_loads(self, candidate: Sequence[int] | np.ndarray, loads: np.ndarray) -> np.ndarray:
        """Summed loads after each single change of a candidate whose `loads` are given: [budgets,
        layers, most levels]."""
        beside = self.loads_beside(candidate)
        now = beside[:, np.arange(len(self.layers)), candidate][:, :, None]
        return loads[:, None, None] + beside - now

    def load_changes(self, candidates: np.ndarray, layers: np.ndarray) -> np.ndarray:
        """By how much the loads of each of `candidates` [n, layers] rise where one of its `layers`
        [n, k] takes another level: [budgets, n, k, most levels]."""
        rows = np.arange(len(candidates))[:, None]
        now = candidates[rows, layers]
        if self.coupling is None:
            return self.load_table[:, layers] - self.load_table[:, layers, now][..., None]
        rows = np.broadcast_to(rows, layers.shape)
        given = self.coupling.given(candidates, rows.ravel(), layers.ravel())
        beside = self.load_table[:, layers] + given.reshape(-1, *layers.shape, given.shape[-1])
        return beside - np.take_along_axis(beside, now[None, ..., None], 3)

    def feasible(self, candidate: Sequence[int]) -> bool:
        """Whether all budgets hold. The one place that decides it."""
        return bool((self.loads(candidate) <= self.limits + ROUNDING).all())

    def cheapest(self) -> Candidate:
        """Every layer at the level with the least mean load over the budgets (the least error where
        there is none); with pairs, a profile that no other level of a single layer makes
        cheaper."""
        if not self.budgets:
            return tuple(int(i) for i in self.error_table.argmin(1))
        chosen = self.load_table.mean(0).argmin(1)
        while self.coupling is not None:
            now = self.loads(chosen)
            falls = (now[:, None, None] - self.changed_loads(chosen, now)).mean(0)
            layer, level = np.unravel_index(falls.argmax(), falls.shape)
            if falls[layer, level] <= 1e-15:
                break
            chosen[layer] = level
        return tuple(int(i) for i in chosen)

    def _scale(self, metric: str) -> float:
        """Unit of a metric's loads: what its budget leaves for the layers; the dense model's cost
        where that is nothing."""
        left = self.budgets[metric] - self.base[metric]
        return left if left > 1e-9 * self.dense[metric] else max(self.dense[metric], 1e-300)

    def excess(self, loads: np.ndarray) -> np.ndarray:
        """Summed violation over the budgets (axis 0 of `loads`); 0 when all hold."""
        over = loads - self.limits.reshape(-1, *(1,) * (loads.ndim - 1))
        return np.where(over > ROUNDING, over, 0.0).sum(0)
