"""The measured additive table: the rise of the calibration loss when one layer alone is compressed, for every level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from compressors.progress import Progress
from db.database import LayerDatabase
from db.tables import MeasuredTable
from evaluators.pool import Pool
from evaluators.workloads import Workload, data_fingerprint

UNUSABLE = 1e9
"""Stands in for a rise that is not finite, so that additive solvers avoid the level and their sums stay numbers."""


def measure_losses(
    workload: Workload,
    database: LayerDatabase,
    batchnorm: str,
    start_pool: Callable[[], Pool],
    progress: Progress | None = None,
    corrections: Sequence[str] = (),
) -> tuple[np.ndarray, ...]:
    """Per layer: loss of (this layer at level i, all others dense) minus the dense loss, float64 [n_levels], in nats, lower
    is better, 0 for dense. The pool must score `loss` in the mode `batchnorm` with `corrections`. Kept in the database's folder
    layer by layer; what is there is not measured again, and where all is there no pool is started. Raises EvaluationError, OutputError, DatabaseCorruptError."""
    key = {
        "what": "rise of the calibration loss, one layer alone",
        "calibration": data_fingerprint(workload.calibration),
        "batchnorm": batchnorm,
    }
    if corrections:
        key["corrections"] = " ".join(corrections)
    if batchnorm == "batch":
        key["batch_size"] = str(workload.batch_size)
    table = MeasuredTable(database, key)
    levels = database.levels()
    if any(name not in table.rows for name in levels):
        with start_pool() as pool:
            _measure(
                table, levels, pool, partial(progress, f"measure single layers, batch-norm {batchnorm}") if progress else None
            )
    rows = (np.array(table.rows[name], dtype=np.float64) for name in levels)
    return tuple(np.where(np.isfinite(row), row, UNUSABLE) for row in rows)


def _measure(
    table: MeasuredTable, levels: Mapping[str, Sequence[str]], pool: Pool, progress: Callable[[int, int], None] | None
) -> None:
    """What the table lacks."""
    dense = tuple(names.index("dense") for names in levels.values())
    base = next(pool.evaluate([(dense, 1.0)])).fitness
    total, done = sum(map(len, levels.values())), sum(map(len, table.rows.values()))
    for index, (name, names) in enumerate(levels.items()):
        if name in table.rows:
            continue
        others = [i for i in range(len(names)) if i != dense[index]]
        candidates = [(*dense[:index], i, *dense[index + 1 :]) for i in others]
        rises = [0.0] * len(names)
        for i, score in zip(others, pool.evaluate([(c, 1.0) for c in candidates]), strict=True):
            rises[i] = score.fitness - base
            if progress:
                progress(done, total)
            done += 1
        done += 1  # the dense level needs no evaluation
        table.add(name, rises)
    if progress:
        progress(total, total)
