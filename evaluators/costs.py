"""What a level costs, per (layer, level): multiply-accumulates, parameters, stored bits; and what the rest of the model adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from compressors.errors import BudgetError, UnknownNameError
from db.database import LayerDatabase
from db.format import Entry, LayerRecord


@dataclass(frozen=True, slots=True)
class CostTable:
    """One metric. `levels[l][i]`: cost of layer l at its i-th level; `base`: of everything that is not compressed; `dense`:
    of the whole dense model, base included. Lower is cheaper; flops in multiply-accumulates per sample, params in non-zeros,
    bits in bits."""

    metric: str
    levels: tuple[np.ndarray, ...]
    base: float
    dense: float


def _flops(record: LayerRecord, entry: Entry) -> float:
    return record.macs * entry.nonzeros / record.size


def _params(_record: LayerRecord, entry: Entry) -> float:
    return entry.nonzeros


def _bits(_record: LayerRecord, entry: Entry) -> float:
    return entry.bits


def _no_base(_model: nn.Module, _compressed: set[int]) -> float:
    return 0.0  # flops count the matrix products of convolutions and linear layers alone, as the field does


def _params_base(model: nn.Module, compressed: set[int]) -> float:
    return sum(p.numel() for p in model.parameters() if id(p) not in compressed)


def _bits_base(model: nn.Module, compressed: set[int]) -> float:
    buffers = sum(8 * b.numel() * b.element_size() for b in model.buffers())
    return buffers + sum(8 * p.numel() * p.element_size() for p in model.parameters() if id(p) not in compressed)


METRICS: dict[str, tuple[Callable[[LayerRecord, Entry], float], Callable[[nn.Module, set[int]], float]]] = {
    "flops": (_flops, _no_base),
    "params": (_params, _params_base),
    "bits": (_bits, _bits_base),
}
"""Metric -> (cost of a layer at a level, cost of what is not compressed)."""


def cost_table(metric: str, model: nn.Module, database: LayerDatabase) -> CostTable:
    """Costs of every (layer, level) of `database` in `metric`. Raises UnknownNameError."""
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    cost, rest = METRICS[metric]
    modules = dict(model.named_modules())
    compressed = {id(modules[name].weight) for name in database.layers}
    records = database.layers.values()
    levels = tuple(np.array([cost(r, e) for e in r.entries], dtype=np.float64) for r in records)
    base = float(rest(model, compressed))
    dense = base + sum(cost(r, database.entry(r.name, "dense")) for r in records)
    return CostTable(metric, levels, base, float(dense))


def check_budget_ratio(metric: str, ratio: float) -> None:
    """Raise UnknownNameError or BudgetError unless `ratio` is a share of the dense model that a metric can be held to."""
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS, "budgets")
    if not 0 < ratio <= 1:
        raise BudgetError(metric, f"must be a fraction of the dense model, above 0 and at most 1; got {ratio}")
