"""The additive table to second order: half of the Gauss-Newton form of KL to the dense model, from
a forward and a backward pass over the calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from apportion.compressors.errors import ConfigurationError, ModelError
from apportion.compressors.progress import Progress, silent
from apportion.db.layers.database import LayerDatabase
from apportion.db.layers.tables import MeasuredTable
from apportion.evaluators.scoring.moves import TOGETHER, Moved, MoveWork, squared_moves
from apportion.evaluators.workloads.workload import Workload, data_fingerprint

GROUP_BYTES = 1 << 30
"""Of the levels' moves, and of gradients, that are held at once: layers are taken in groups, each a
pass over the data."""
_DRAWS = 256
"""Random directions in all, at least: a mean of so many squares is good to a tenth."""
_CHUNK = 64
"""Samples that a worker is given at once; part of what a table's last bits depend on."""
Apply = Callable[[Callable[[Any, Any], Any], Any, Sequence[Any]], Iterator[tuple[int, Any]]]
"""(function, shared, calls) -> number and result of function(shared, call), in any order."""


def fisher_table(
    workload: Workload,
    database: LayerDatabase,
    apply: Apply,
    progress: Progress = silent,
    *,
    threads: int = 1,
    device: str = "cpu",
    group_bytes: int = GROUP_BYTES,
) -> tuple[np.ndarray, ...]:
    """T[l, i] = 1/2 mean over samples n of <G_n, W_i - W_dense>^2, with G_n as in `squared_moves`.
    To second order in the change it is KL to the dense model (Amari 1998), on the weights that the
    database ships. Kept in the database's folder, group of layers by group of layers; what is there
    is not computed again.

    Args:
        workload: whose calibration data are looked at.
        database: gives the weights.
        apply: does the work.
        progress: told of samples.
        threads: of torch, in each call.
        device: where torch computes.
        group_bytes: memory for a group of layers' moves and gradients; a layer is never split.

    Returns:
        Per layer float64 [n_levels], nats, lower is better, 0 for dense.

    Raises:
        ConfigurationError: a level quantizes inputs.
        ModelError: the model has no gradients, or a layer has none.
    """
    check_weights_alone(database)
    key = {
        "what": "half the Gauss-Newton form of KL, one layer alone, version 1",
        "calibration": data_fingerprint(workload.calibration),
        **workload.task.key(),
    }
    table = MeasuredTable(database, key)
    missing = [name for name in database.layers if name not in table.rows]
    groups = _groups(database, missing, group_bytes)
    count = len(workload.calibration)
    calls = [(at, min(at + _CHUNK, count)) for at in range(0, count, _CHUNK)]
    done = 0
    for names in groups:
        layers = tuple(_moved(workload, database, name) for name in names)
        work = MoveWork(
            *(workload.model, workload.task, workload.calibration, layers),
            threads=threads,
            device=device,
            draws=-(-_DRAWS // count),
        )
        parts: dict[int, list[torch.Tensor | None]] = {}
        for number, sums in apply(squared_moves, work, calls):
            parts[number] = sums
            done += calls[number][1] - calls[number][0]
            progress("gradients of samples", done, count * len(groups))
        for index, name in enumerate(names):
            found = [parts[number][index] for number in range(len(calls))]
            table.add(name, (0.5 * _added(name, found) / count).tolist())
    return tuple(np.array(table.rows[name], dtype=np.float64) for name in database.levels())


def check_weights_alone(database: LayerDatabase) -> None:
    """Raises ConfigurationError where a level changes more than weights."""
    for name, record in database.layers.items():
        for entry in record.entries:
            if entry.activation is not None:
                raise ConfigurationError(
                    f"errors: fisher: level {entry.level} of layer {name!r} quantizes inputs, "
                    "which moves no weight; there are layer, probe, loss and kl"
                )


def _groups(database: LayerDatabase, names: Sequence[str], most: int) -> list[list[str]]:
    """Neighbouring layers, as many as fit."""
    groups: list[list[str]] = []
    taken = 0
    for name in names:
        record = database.layers[name]
        size = 4 * (len(record.entries) + TOGETHER) * int(np.prod(record.shape))
        if not groups or taken + size > most:
            groups.append([])
            taken = 0
        groups[-1].append(name)
        taken += size
    return groups


def _moved(workload: Workload, database: LayerDatabase, name: str) -> Moved:
    record = database.layers[name]
    dense = record.where.read(workload.model).reshape(-1).float()
    moves = torch.zeros(len(record.entries), dense.numel())
    for row, entry in zip(moves, record.entries, strict=True):
        if str(entry.level) != "dense":
            torch.sub(database.weight(name, entry.level).reshape(-1).float(), dense, out=row)
    return Moved(name, record.where, moves)


def _added(name: str, parts: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """The parts' sum, in order: the same however many workers there are."""
    there = [part for part in parts if part is not None]
    if not there:
        raise ModelError(
            f"errors: fisher: the model's outputs have no gradient with respect to layer {name!r} "
            "(its code detaches it); probe, kl and loss need none"
        )
    return torch.stack(there).sum(0)
