"""The additive table that a job asks for (`errors`), made from its model and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from apportion.compressors.errors import ConfigurationError
from apportion.compressors.progress import Progress, silent
from apportion.db.channels.database import ChannelDatabase
from apportion.db.layers.database import LayerDatabase
from apportion.db.layers.tables import AnyDatabase
from apportion.evaluators.scoring.fisher import fisher_table
from apportion.evaluators.scoring.moves import check_gradients
from apportion.evaluators.scoring.probes import probe
from apportion.evaluators.scoring.sensitivity import measure_alone
from apportion.evaluators.workloads.workload import Workload
from apportion.search.jobs.job import Job
from apportion.search.runs.workers import Workers, scoring_spec

_NEED_DISTRIBUTIONS = ("kl", "fisher", "probe")


def check_errors(job: Job, workload: Workload) -> None:
    """Raises ConfigurationError, ModelError where the job's table cannot be made for its task or
    model."""
    task = workload.task
    if job.errors in _NEED_DISTRIBUTIONS and not task.has_distributions:
        raise ConfigurationError(
            f"errors: {job.errors}: task {task.identity} has no distribution over outcomes to take "
            "KL of; layer or loss can be had"
        )
    if job.errors == "fisher":
        check_gradients(workload.model, task, workload.calibration)


@dataclass(frozen=True)
class Table:
    """`rows`: per layer float64 [levels], lower is better, 0 for dense. `report`: what is to be
    said of it, by name."""

    rows: tuple[np.ndarray, ...]
    report: Mapping[str, float | None] = field(default_factory=dict)


def make_table(
    job: Job,
    workload: Workload,
    database: AnyDatabase,
    workers: Workers,
    progress: Progress = silent,
) -> Table:
    """What every level of every layer costs when it stands alone, as `job.errors` says: KL to the
    dense model with running statistics (`kl`), that to second order (`fisher`), the layer errors as
    KL by a few evaluations (`probe`), or the rise of the loss.

    Losses are with running statistics, and where the search scores otherwise the larger of that and
    the rise with the batch's own. A level that is harmless in one mode alone is not harmless: batch
    statistics hide a shift of the mean, running statistics overstate it. A second reading of KL
    gained nothing.

    Args:
        job: says which table, and how the search scores.
        workload: the job's.
        database: the job's, in whose folder what is made is kept.
        workers: do the work.
        progress: told of levels, or samples.

    Returns:
        The table: rises of the loss, or KL in nats; layer errors, which are neither, where the
        job has those.

    Raises:
        ApportionError: whatever keeps the table from being made.
    """
    measured = partial(_measured, job, workload, database, workers, progress)
    if job.errors == "layer":
        return Table(layer_errors(database))
    if job.errors == "fisher":
        assert isinstance(database, LayerDatabase)  # a job with channel levels was refused
        return Table(
            fisher_table(
                workload,
                database,
                workers.apply,
                progress,
                threads=job.workers.cpus,
                device="cuda" if job.workers.gpus else "cpu",
            )
        )
    if job.errors == "probe":
        with workers.pool(scoring_spec(job, workload, database, "kl", "running")) as pool:
            errors = layer_errors(database)
            made = probe(workload, database, errors, pool, progress, job.corrections.score)
        return Table(
            made.rows,
            {
                "probes": made.evaluations,
                "rank_correlation_before": made.before,
                "rank_correlation_after": made.after,
            },
        )
    if job.errors == "kl":
        return Table(measured("kl", "running"))
    if job.batchnorm == "running":
        return Table(measured("loss", "running"))
    return Table(largest([measured("loss", mode) for mode in ("running", "batch")]))


def layer_errors(database: AnyDatabase) -> tuple[np.ndarray, ...]:
    """The layer errors that the database holds, each over that of an empty layer; of decisions
    their sums."""
    if isinstance(database, ChannelDatabase):
        return tuple(np.array(own.errors) for own in database.decisions.values())
    assert isinstance(database, LayerDatabase)
    return tuple(
        np.array([e.normalized_error for e in r.entries]) for r in database.layers.values()
    )


def largest(tables: Sequence[Sequence[np.ndarray]]) -> tuple[np.ndarray, ...]:
    """Of tables of the same levels, the largest of each entry."""
    return tuple(np.maximum.reduce(rows) for rows in zip(*tables, strict=True))


def _measured(
    job: Job,
    workload: Workload,
    database: AnyDatabase,
    workers: Workers,
    progress: Progress,
    fitness: str,
    mode: str,
) -> tuple[np.ndarray, ...]:
    with workers.pool(scoring_spec(job, workload, database, fitness, mode)) as pool:
        return measure_alone(
            workload, database, fitness, mode, pool, progress, job.corrections.score
        )
