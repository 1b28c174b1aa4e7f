"""What a level costs, per (layer, level): multiply-accumulates, parameters, stored bits, bit
operations, latency; and what the rest of the model adds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from torch import nn

from apportion.compressors.levels import DENSE, parse_level
from apportion.db.layers.database import LayerDatabase
from apportion.db.layers.format import Entry, LayerRecord
from apportion.evaluators.costs.latency import LatencyTable

_FLOAT_BITS = 32


@dataclass(frozen=True, slots=True)
class CostTable:
    """One metric. `levels[l][i]`: cost of layer l at its i-th level; `base`: of everything that is
    not compressed; `dense`: of the whole dense model, base included. Lower is cheaper; flops in
    multiply-accumulates per sample, params in non-zeros, bits in bits, bops in bit operations,
    latency in seconds."""

    metric: str
    levels: tuple[np.ndarray, ...]
    base: float
    dense: float


def _flops(record: LayerRecord, entry: Entry) -> float:
    # Zeros that a quantizer or the training left are no pattern that anything could skip.
    return record.macs * (
        entry.nonzeros / record.size if parse_level(entry.level).sparsity else 1.0
    )


def _params(_record: LayerRecord, entry: Entry) -> float:
    return entry.nonzeros


def _bits(_record: LayerRecord, entry: Entry) -> float:
    return entry.bits


def _bops(record: LayerRecord, entry: Entry) -> float:
    weight, activation = _operand_bits(entry)
    return _flops(record, entry) * weight * activation


def _bops_linear(record: LayerRecord, entry: Entry) -> float:
    return _flops(record, entry) * max(_operand_bits(entry))


def _operand_bits(entry: Entry) -> tuple[int, int]:
    """Bits of the weights and of the activations that a product takes; 32 where they are not
    quantized."""
    quantization = parse_level(entry.level).quantization
    if quantization is None:
        return _FLOAT_BITS, _FLOAT_BITS
    return quantization.weight_bits or _FLOAT_BITS, quantization.activation_bits or _FLOAT_BITS


def _flops_base(_model: nn.Module, database: LayerDatabase) -> float:
    """Products of activations with each other, and of weights that stay dense."""
    return float(database.base_macs)


def _params_base(model: nn.Module, database: LayerDatabase) -> float:
    compressed = sum(record.size for record in database.layers.values())
    return sum(p.numel() for p in _distinct(model)) - compressed


def _bits_base(model: nn.Module, database: LayerDatabase) -> float:
    buffers = sum(8 * b.numel() * b.element_size() for b in model.buffers())
    whole = sum(8 * p.numel() * p.element_size() for p in _distinct(model))
    compressed = sum(
        8 * record.size * model.get_parameter(record.where.parameters[0]).element_size()
        for record in database.layers.values()
    )
    return buffers + whole - compressed


def _bops_base(_model: nn.Module, database: LayerDatabase) -> float:
    return float(database.base_macs) * _FLOAT_BITS**2


def _bops_linear_base(_model: nn.Module, database: LayerDatabase) -> float:
    return float(database.base_macs) * _FLOAT_BITS


def _distinct(model: nn.Module) -> Iterable[nn.Parameter]:
    """The parameters, those that share memory once."""
    found: dict[object, nn.Parameter] = {}
    for parameter in model.parameters():
        stored = parameter.untyped_storage().data_ptr()
        where = (stored, parameter.storage_offset(), parameter.shape) if stored else id(parameter)
        found.setdefault(where, parameter)
    return found.values()


_Cost = Callable[[LayerRecord, Entry], float]
_Base = Callable[[nn.Module, LayerDatabase], float]
_COUNTED: dict[str, tuple[_Cost, _Base]] = {
    "flops": (_flops, _flops_base),
    "params": (_params, _params_base),
    "bits": (_bits, _bits_base),
    "bops": (_bops, _bops_base),
    "bops-linear": (_bops_linear, _bops_linear_base),
}
"""Metric -> (cost of a layer at a level, cost of what is not compressed). bops:
multiply-accumulates x weight bits x activation bits x density; bops-linear: x the larger of the two
alone, as the published code of Optimal Brain Compression counts (there multiply-accumulates x 32 /
(32 / B) for wBaB, half of that for 2:4)."""

METRICS = (*_COUNTED, "latency")


def cost_tables(
    model: nn.Module, database: LayerDatabase, latency: LatencyTable | None = None
) -> dict[str, CostTable]:
    """Costs of every (layer, level) of `database` in every metric; latency where a table of it is
    given. Raises DataError for a layer that the table lacks."""
    records = database.layers.values()
    tables = {}
    for metric, (cost, rest) in _COUNTED.items():
        levels = tuple(np.array([cost(r, e) for e in r.entries], dtype=np.float64) for r in records)
        base = float(rest(model, database))
        dense = base + sum(cost(r, database.entry(r.name, "dense")) for r in records)
        tables[metric] = CostTable(metric, levels, base, float(dense))
    if latency is not None:
        levels = tuple(
            latency.of(r.name, [parse_level(entry.level) for entry in r.entries]) for r in records
        )
        # A layer that the table has and the database has not runs as it is: it belongs to the base.
        base = latency.whole - sum(latency.seconds[name][DENSE] for name in database.layers)
        tables["latency"] = CostTable("latency", levels, base, latency.whole)
    return tables
