"""Training of a model that has no masks or grids to hold."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from apportion.compressors.progress import Progress, silent
from apportion.compressors.threads import device_for, torch_threads
from apportion.db.layers import format
from apportion.evaluators.cluster.training import train_together
from apportion.evaluators.training.checkpoints import FolderCheckpoints
from apportion.evaluators.training.config import FinetuneConfig
from apportion.evaluators.training.recovery import Recovery, teacher_of
from apportion.evaluators.workloads.workload import Workload, model_fingerprint
from apportion.search.jobs.job import Job


def train(
    model: nn.Module,
    teacher: nn.Module,
    workload: Workload,
    job: Job,
    config: FinetuneConfig,
    states: Path,
    progress: Progress = silent,
) -> None:
    """Fine-tune `model` in place.

    Args:
        model: all of its parameters are trained.
        teacher: the dense one.
        workload: gives task and training data.
        job: gives seed and workers.
        config: how to train.
        states: a folder for what is needed to go on with a training that was interrupted; to be
            removed when what was trained is kept.
        progress: told of epochs.

    Raises:
        OutputError: the folder cannot be written; with workers, also what `train_together` raises.
    """
    own = job.workers
    key = {"model": model_fingerprint(model), "finetune": config.model_dump(mode="json")}
    with torch_threads(own.cpus):
        recovery = Recovery(
            task=workload.task,
            model=model,
            dense=teacher_of(teacher),
            what={},
            batch_size=workload.batch_size,
            seed=job.workload.seed,
            checkpoints=FolderCheckpoints(states),
            key=format.digest(key),
            progress=progress,
            device=device_for(own.gpus),
        )
        if config.workers:
            train_together(recovery, workload.train, config, own.each, states, progress)
        recovery.finetune(workload.train, config)


def forget(states: Path) -> None:
    """Remove what a training kept."""
    shutil.rmtree(states, ignore_errors=True)
