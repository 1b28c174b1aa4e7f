"""The measured additive tables: the rise of the calibration loss, or KL to the dense model, when
one layer alone is compressed, for every level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apportion.compressors.progress import Progress, silent
from apportion.db.layers.tables import AnyDatabase, MeasuredTable
from apportion.evaluators.scoring.pool import Pool
from apportion.evaluators.workloads.workload import Workload, data_fingerprint

UNUSABLE = 1e9
"""Stands in for a rise that is not finite, so that additive solvers avoid the level and their sums
stay numbers."""


_WHAT = {
    "loss": "rise of the calibration loss, one layer alone",
    "kl": "KL to the dense model, one layer alone",
}
"""Fitness -> what its table is of: part of what identifies a table."""


def measure_alone(
    workload: Workload,
    database: AnyDatabase,
    fitness: str,
    batchnorm: str,
    pool: Pool,
    progress: Progress = silent,
    corrections: Sequence[str] = (),
) -> tuple[np.ndarray, ...]:
    """What it costs when one layer alone is compressed. Kept in the database's folder layer by
    layer; what is there is not measured again.

    Args:
        workload: whose calibration data are scored.
        database: gives layers and levels.
        fitness: `loss`, of which the rise counts, or `kl`.
        batchnorm: the batch-norm mode in which `pool` scores.
        pool: scores `fitness`.
        progress: told of levels.
        corrections: made for every candidate by `pool`.

    Returns:
        Per layer: the fitness of (this layer at level i, all others dense) minus the dense
        model's, float64 [n_levels], in the loss's unit, or nats, lower is better, 0 for dense.

    Raises:
        EvaluationError, OutputError, DatabaseCorruptError.
    """
    key = {
        "what": _WHAT[fitness],
        "calibration": data_fingerprint(workload.calibration),
        "batchnorm": batchnorm,
        **workload.task.key(),
    }
    if corrections:
        key["corrections"] = " ".join(corrections)
    if batchnorm == "batch":
        key["batch_size"] = str(workload.batch_size)
    table = MeasuredTable(database, key)
    levels = database.levels()
    dense = tuple(names.index("dense") for names in levels.values())
    missing = [(i, name) for i, name in enumerate(levels) if name not in table.rows]
    base = 0.0  # the divergence of the dense model from itself
    if fitness != "kl" and missing:
        base = next(pool.evaluate([(dense, 1.0)])).fitness
    total = sum(len(names) for names in levels.values())
    done = sum(len(row) for row in table.rows.values())
    step = f"measure single layers, batch-norm {batchnorm}"
    for index, name in missing:
        others = [i for i in range(len(levels[name])) if i != dense[index]]
        candidates = [(*dense[:index], i, *dense[index + 1 :]) for i in others]
        rises = [0.0] * len(levels[name])
        for i, score in zip(others, pool.evaluate([(c, 1.0) for c in candidates]), strict=True):
            rises[i] = score.fitness - base
            progress(step, done, total)
            done += 1
        done += 1  # the dense level needs no evaluation
        table.add(name, rises)
    if missing:
        progress(step, total, total)
    rows = (np.array(table.rows[name], dtype=np.float64) for name in levels)
    return tuple(np.where(np.isfinite(row), row, UNUSABLE) for row in rows)
