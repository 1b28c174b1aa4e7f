"""Who works for a job: this process, or Ray actors, kept from the build to the last pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from apportion.compressors.errors import ConfigurationError
from apportion.compressors.threads import device_for, limit_threads
from apportion.db.layers.executor import Executor, LocalExecutor
from apportion.db.layers.tables import AnyDatabase
from apportion.evaluators.cluster.actor_pool import ActorPool
from apportion.evaluators.cluster.executor import RayExecutor
from apportion.evaluators.cluster.pool import RayPool
from apportion.evaluators.scoring.pool import DEADLINE, LazyPool, LocalPool, Pool
from apportion.evaluators.scoring.spec import ScoringSpec
from apportion.evaluators.workloads.workload import Workload
from apportion.search.jobs.job import Job
from apportion.search.jobs.sections import WorkersConfig


class Workers(AbstractContextManager["Workers"]):
    """Where the job's database is built, and its candidates are scored. Ray is started when it is
    first needed, and stopped at the end where it was started for this. Raises ConfigurationError
    when machine or cluster lack what is asked."""

    def __init__(self, config: WorkersConfig) -> None:
        limit_threads()
        self._config = config
        self._actors: ActorPool | None = None

    def executor(self) -> Executor:
        self._check_device()  # a database takes hours, and the search could not use it here
        return (
            RayExecutor(self._start_actors(), max(self._config.deadline, DEADLINE))
            if self._config.count
            else LocalExecutor(self._config.gpus)
        )

    def apply(
        self, function: Callable[[Any, Any], Any], shared: Any, calls: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        """function(shared, call) for each of `calls`, as they are finished: its number and
        result."""
        executor = self.executor()
        if isinstance(executor, RayExecutor):
            yield from executor.apply(function, shared, calls)
        else:
            yield from ((number, function(shared, call)) for number, call in enumerate(calls))

    @property
    def device(self) -> str:
        """Where this process runs the model itself: on its GPU where the job has one here."""
        return "cpu" if self._config.count else device_for(self._config.gpus)

    def pool(self, spec: ScoringSpec) -> Pool:
        """Workers that score by `spec`; they start when there is first something to score."""
        return LazyPool(partial(self.start, spec))

    def start(self, spec: ScoringSpec) -> Pool:
        """Workers that score by `spec`, started now."""
        config = self._config
        if config.count:
            return RayPool(spec, self._start_actors(), config.deadline)
        self._check_device()
        return LocalPool(spec, config.cpus)

    def close(self) -> None:
        if self._actors is not None:
            self._actors.close()
            self._actors = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_device(self) -> None:
        if self._config.gpus and not self._config.count and not torch.cuda.is_available():
            raise ConfigurationError(
                "workers.gpus is above 0, and torch finds no CUDA device on this machine"
            )

    def _start_actors(self) -> ActorPool:
        if self._actors is None:
            config = self._config
            self._actors = ActorPool(config.count, config.each, config.at_least)
        return self._actors


def scoring_spec(
    job: Job, workload: Workload, database: AnyDatabase, fitness: str, batchnorm: str
) -> ScoringSpec:
    """What scores candidates of `database` as the job says, but for the fitness and the batch-norm
    mode.

    Args:
        job: gives corrections, device and precision.
        workload: the job's, or one with other calibration data.
        database: the job's.
        fitness: name of the fitness.
        batchnorm: name of the batch-norm mode.

    Returns:
        The spec, for `Workers.pool`.
    """
    return ScoringSpec(
        workload,
        database.path,
        database.fingerprint,
        fitness,
        batchnorm,
        corrections=job.corrections.score,
        device="cuda" if job.workers.gpus else "cpu",
        precision=job.workers.precision,
    )
