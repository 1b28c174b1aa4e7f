"""Who works for a job: this process, or a crew of Ray actors that is kept from the build to the last pool."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch

from compressors.errors import ConfigurationError
from compressors.progress import Progress
from db.crew import Crew
from db.database import LayerDatabase
from db.fanout import Fanout, InProcess, RayWorkers
from evaluators.pool import LazyPool, LocalPool, Pool
from evaluators.ray_pool import RayPool
from evaluators.scorers import ScorerMaker
from evaluators.sensitivity import measure_losses
from evaluators.workloads import Workload
from search.job import Job, WorkersConfig


class Workers(AbstractContextManager["Workers"]):
    """Where the job's database is built, and its candidates are scored. Ray is started when it is first needed, and stopped at
    the end where it was started for this. Raises ConfigurationError when machine or cluster lack what is asked."""

    def __init__(self, config: WorkersConfig) -> None:
        self._config = config
        self._crew: Crew | None = None

    def fanout(self) -> Fanout:
        self._check_device()  # a database takes hours, and the search could not use it here
        return RayWorkers(self._actors()) if self._config.count else InProcess(self._config.gpus)

    def pool(self, maker: Callable[[], ScorerMaker]) -> Pool:
        """Workers that score with what `maker` gives; they start when there is first something to score."""
        return LazyPool(lambda: self._start(maker()))

    def _start(self, make_scorer: ScorerMaker) -> Pool:
        config = self._config
        if config.count:
            return RayPool(make_scorer, self._actors(), config.deadline)
        self._check_device()
        return LocalPool(make_scorer, config.cpus)

    def close(self) -> None:
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_device(self) -> None:
        if self._config.gpus and not self._config.count and not torch.cuda.is_available():
            raise ConfigurationError("workers.gpus is above 0, and torch finds no CUDA device on this machine")

    def _actors(self) -> Crew:
        if self._crew is None:
            config = self._config
            self._crew = Crew(config.count, config.cpus, config.gpus, config.at_least, config.resources)
        return self._crew


def scorers(job: Job, workload: Workload, database: LayerDatabase, fitness: str, batchnorm: str) -> ScorerMaker:
    """Makes what scores candidates of `database` as the job says, but for the fitness and the batch-norm mode."""
    options = {
        "fitness": fitness,
        "batchnorm": batchnorm,
        "corrections": job.corrections.score,
        "device": "cuda" if job.workers.gpus else "cpu",
        "precision": job.workers.precision,
    }
    return ScorerMaker(workload, database.path, database.fingerprint, options)


def measured_errors(
    job: Job, workload: Workload, database: LayerDatabase, workers: Workers, progress: Progress | None = None
) -> tuple[np.ndarray, ...]:
    """Measured single-layer losses, [levels] per layer: with running statistics, and where the search scores otherwise the
    larger of that and the rise with the batch's own. A level that is harmless in one mode alone is not harmless: batch
    statistics hide a shift of the mean, running statistics overstate it. Kept in the database's folder."""
    modes = ["running"] if job.batchnorm == "running" else ["running", "batch"]
    tables = []
    for mode in modes:
        with workers.pool(partial(scorers, job, workload, database, "loss", mode)) as pool:
            tables.append(measure_losses(workload, database, mode, pool, progress, job.corrections.score))
    return tuple(np.maximum.reduce(rows) for rows in zip(*tables, strict=True))
