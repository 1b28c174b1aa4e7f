"""A job's workload and its layer database."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from apportion.compressors.calibration import FullPass
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.levels import Level
from apportion.compressors.progress import Progress, silent
from apportion.db.channels.plan import ChannelPlan
from apportion.db.layers import format
from apportion.db.layers.build import build_database
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.scoring.batchnorm import check_single
from apportion.evaluators.training.recovery import check_recovery
from apportion.evaluators.workloads.workload import (
    TUNING,
    Workload,
    data_fingerprint,
    first_inputs,
    load_workload,
    model_fingerprint,
    model_outputs,
)
from apportion.search.jobs.channels import ChannelsConfig
from apportion.search.jobs.job import Job
from apportion.search.runs.channel_building import channel_database
from apportion.search.runs.tables import check_errors
from apportion.search.runs.workers import Workers

_OUTPUTS = 8
"""Calibration inputs whose outputs a database records."""


def build(
    job: Job,
    progress: Progress = silent,
    workers: Workers | None = None,
    workload: Workload | None = None,
) -> tuple[Workload, LayerDatabase]:
    """Load the job's workload, unless it is given, and build its layer database, or go on with one
    that was begun; by `workers`, which stays, or by workers of the build's own. Raises
    ApportionError."""
    if workers is None:
        with Workers(job.workers) as own:
            return build(job, progress, own, workload)
    workload = workload or load_workload(job.workload, progress)
    check_errors(job, workload)
    check_recovery(workload, job.recovery)
    workload.task.check_dense(workload.model, workload.test, job.workload.name, progress)
    _check_batches(job, workload)
    config = job.database
    default = config.expanded()
    found = find_layers(workload.model, workload.traced_pass())
    if config.has_channels:
        plan = _channel_plan(job, workload, default)
        data = calibration_pass(job, workload)
        made = channel_database(job, workload, found, plan, data, workers, progress)
        return workload, made.database
    built = job.layers.built(found.layers, default, _names(workload.model, found.dense))
    database = build_database(
        config.path,
        workload.model,
        found,
        calibration_pass(job, workload),
        default,
        model_fingerprint=model_fingerprint(workload.model),
        model_outputs=model_outputs(workload.model, first_inputs(workload, _OUTPUTS)),
        calibration_fingerprint=_calibration_fingerprint(job, workload),
        exceptions={name: levels for name, levels in built.items() if levels != default},
        options=config.options(),
        progress=progress,
        executor=workers.executor,
        device=workers.device,
    )
    return workload, database


def _channel_plan(job: Job, workload: Workload, levels: Sequence[Level]) -> ChannelPlan:
    config = job.database.channels or ChannelsConfig.model_validate({})
    return ChannelPlan(
        model_fingerprint(workload.model),
        _calibration_fingerprint(job, workload),
        tuple(levels),
        job.database.options(),
        config.rules(),
        {"criterion": config.criterion, "seed": job.workload.seed},
        model_outputs(workload.model, first_inputs(workload, _OUTPUTS)),
    )


def _names(model: nn.Module, dense: Collection[str]) -> set[str]:
    """All names of parameters that stay dense, those of tied weights too, and of their modules."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    shared = {id(parameters[name]) for name in dense if name in parameters}
    names = {name for name, parameter in parameters.items() if id(parameter) in shared}
    return names | {name.rpartition(".")[0] for name in names}


def _check_batches(job: Job, workload: Workload) -> None:
    """No batch of which the job takes batch-norm's statistics may be a single sample that gives
    none. Raises DataError."""
    counts = []
    if job.batchnorm != "running" or "batchnorm" in job.corrections.score:
        counts.append(len(workload.calibration))
        if workload.selection is not None and job.search.picks > 1:
            counts.append(len(workload.selection.indices))
    if "batchnorm" in job.corrections.export:
        counts.append(min(len(workload.train), TUNING))
    for count in counts:
        check_single(workload.model, first_inputs(workload, 1), count, workload.batch_size)


def calibration_pass(job: Job, workload: Workload) -> FullPass:
    """What the database is built from."""
    data, size, augment = workload.calibration, workload.batch_size, job.database.augment
    count = -(-len(data) // size)
    if augment is None:
        return workload.unpadded_pass(lambda: data.batches(size), count)
    count *= augment.rounds
    return workload.unpadded_pass(lambda: workload.augmented(augment, job.workload.seed), count)


def _calibration_fingerprint(job: Job, workload: Workload) -> str:
    """Of the data that the database is built from, of how they are fed, and augmented."""
    data, task = data_fingerprint(workload.calibration), workload.task.key()
    if job.database.augment is None:
        return format.digest({"data": data, **task}) if task else data
    config = job.database.augment.model_dump()
    return format.digest({"images": data, "seed": job.workload.seed, **task, **config})
