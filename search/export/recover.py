"""Recovery of an exported model: the job's training steps, on its profile's masks and grids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from apportion.compressors.progress import Progress, silent
from apportion.compressors.threads import device_for, torch_threads
from apportion.db.layers import format
from apportion.db.layers.profile import to_json
from apportion.evaluators.cluster.training import train_together
from apportion.evaluators.training.checkpoints import FolderCheckpoints
from apportion.evaluators.training.config import RecoveryConfig
from apportion.evaluators.training.recovery import Recovery, teacher_of
from apportion.search.export.compressed_model import CompressedModel


def recover(
    subject: CompressedModel,
    config: RecoveryConfig,
    folder: Path,
    done: Callable[[str], None],
    progress: Progress = silent,
) -> None:
    """Train a compressed model.

    Args:
        subject: the model, which is trained in place.
        config: the steps.
        folder: keeps the training's state after each epoch.
        done: told the name of each step after it.
        progress: told of epochs.

    Raises:
        OutputError: the folder cannot be written; with workers, also what `train_together` raises.
    """
    if config == RecoveryConfig():
        return
    problem = subject.problem
    job, workload = problem.job, problem.workload
    key = format.digest(
        {
            "problem": problem.key,
            "profile": to_json(subject.profile),
            "corrections": job.corrections.export,
            "recovery": config.model_dump(mode="json"),
            "seed": job.workload.seed,
            "weights": _digest(subject),
        }
    )
    with torch_threads(job.workers.cpus):
        training = Recovery(
            task=workload.task,
            model=subject.model,
            dense=teacher_of(problem.teacher or workload.model),
            what={},
            batch_size=workload.batch_size,
            seed=job.workload.seed,
            checkpoints=FolderCheckpoints(folder),
            key=key,
            progress=progress,
            device=device_for(job.workers.gpus),
        )
        if config.lintune is not None:
            training.lintune(workload.calibration, config.lintune)
            done("lintune")
        if config.adaprune is not None:
            training.what = subject.holds()
            subject.trained |= training.adaprune(workload.calibration, config.adaprune)
            done("adaprune")
        if config.finetune is not None:
            training.what = subject.holds()
            if config.finetune.workers:
                each = {"CPU": job.workers.cpus, "GPU": job.workers.gpus, **job.workers.resources}
                problem.close()  # its workers hold the processors that the training needs
                train_together(training, workload.train, config.finetune, each, folder, progress)
            subject.trained |= training.finetune(workload.train, config.finetune)
            done("finetune")


def _digest(subject: CompressedModel) -> str:
    """Of what the corrections left: it depends on the machine's rounding."""
    total = torch.stack(
        [tensor.double().sum() for tensor in subject.model.state_dict().values()]
    ).tolist()
    return format.digest(
        {
            "sums": total,
            "activations": {name: asdict(grid) for name, grid in subject.activations.items()},
        }
    )
