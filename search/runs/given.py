"""A problem from what a program has in memory: a model, its task, its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from apportion.compressors.errors import ConfigurationError
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data.dataset import Splits
from apportion.evaluators.data.loaders import as_dataset
from apportion.evaluators.models.build import checked
from apportion.evaluators.tasks.task import Task
from apportion.evaluators.workloads.workload import GIVEN, assembled
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import ModelProblem, prepare_model

_OWN = ("task", "data")
"""What of `workload` is given as objects."""


def prepare(
    model: nn.Module,
    *,
    task: Task,
    calibration: Any,
    test: Any,
    levels: Sequence[str],
    budgets: Mapping[str, float | str],
    train: Any = None,
    database: str | Path | None = None,
    progress: Progress = silent,
    **sections: Any,
) -> ModelProblem:
    """Build the layer database of `model`, or go on with one that was begun, and check the budgets:
    a problem to be searched. The model keeps its weights; it is put in eval mode, and parameters of
    it that are the same memory are made one.

    Args:
        model: on the CPU, in float32.
        task: apportion.Task(forward=..., loss=..., metric=...), or a Task of your own.
        calibration: what the database and the search see: a DataLoader, or an iterable of batches.
        test: what only reports look at.
        levels: such as ["dense", "w4", "unstr-0.5..0.9*0.7"].
        budgets: metric -> upper bound, as in a job file: {"bits": "6x"}.
        train: what corrections and fine-tuning see; by default the calibration data.
        database: its folder; by default databases/ and the name of the model's class.
        progress: told of all that takes long.
        sections: any other section of a job file (docs/JOBS.md): search, corrections, layers,
            workers, ...; of `workload` the number of samples, `batch_size`, `seed` and `fold`; of
            `database` all but path and levels as `database_options`.

    Returns:
        The problem, a context; `run_search` searches it, `export` writes what was found.

    Raises:
        ApportionError: whatever is wrong, in one line.
    """
    if isinstance(task, type) or not isinstance(task, Task):
        raise ConfigurationError("task: an apportion.Task(...) is needed, an instance of it")
    name = type(model).__name__
    own = dict(sections.pop("workload", {}))
    options = dict(sections.pop("database_options", {}))
    if taken := sorted({"model", "weights", *_OWN} & own.keys()):
        raise ConfigurationError(f"workload.{taken[0]} is given as an object already")
    content = {
        **sections,
        "workload": {
            **own,
            "model": f"{GIVEN}{name}",
            "data": {"kind": "python", "function": f"{GIVEN}data"},
        },
        "database": {
            **options,
            "path": str(Path(database or Path("databases") / name).absolute()),
            "levels": list(levels),
        },
        "budgets": dict(budgets),
    }
    job = parse_model_job(content)
    splits = Splits(
        as_dataset(calibration, "calibration"),
        as_dataset(test, "test"),
        None if train is None else as_dataset(train, "train"),
    )
    workload = assembled(job.workload, checked(model, name), splits, task, progress)
    return prepare_model(job, progress, workload)
