"""The main job as functions: build the layer database, search, and what both need. The command line
calls these, and so can any Python program (docs/API.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
from torch import nn

from apportion.compressors.errors import ConfigurationError
from apportion.compressors.progress import Progress, silent
from apportion.db.channels.database import ChannelDatabase
from apportion.db.layers import format
from apportion.db.layers.database import LayerDatabase
from apportion.db.runs.store import Run, RunStore
from apportion.db.runs.url import masked
from apportion.evaluators.scoring.pool import LazyPool, Pool
from apportion.evaluators.scoring.spec import ScoringSpec
from apportion.evaluators.training.recovery import check_held
from apportion.evaluators.workloads.partners import partners
from apportion.evaluators.workloads.workload import (
    Workload,
    data_fingerprint,
)
from apportion.search.algorithms.registry import create
from apportion.search.jobs.job import AnyJob, Job, TableJob
from apportion.search.jobs.layers import AUTO
from apportion.search.runs.building import build
from apportion.search.runs.loop import RunResult, search
from apportion.search.runs.problem import Problem
from apportion.search.runs.selection import select
from apportion.search.runs.spaces import channel_latency, channel_space, latency_of, make_space
from apportion.search.runs.table_problem import TableProblem, prepare_table
from apportion.search.runs.tables import make_table
from apportion.search.runs.warm import begin_from, check_not_dominated, lineage
from apportion.search.runs.workers import Workers, scoring_spec
from apportion.search.space.decisions import Decisions
from apportion.search.space.feasibility import check_budgets


@dataclass(kw_only=True)
class ModelProblem(Problem):
    """A job with its workload and database loaded."""

    job: Job
    workload: Workload
    database: LayerDatabase
    channels: ChannelDatabase | None = None
    """The database by its decisions, where it has channel levels."""
    workers: Workers
    table: Mapping[str, float | None] = field(default_factory=dict)
    """What is to be said of the additive table."""
    teacher: nn.Module | None = None
    """What training of an exported model has as its teacher; None: the workload's model."""

    def close(self) -> None:
        super().close()
        self.workers.close()

    def identity(self) -> dict[str, Any]:
        job, space = self.job, self.full_space
        found: dict[str, Any] = {
            "problem": self.key,
            "budgets": job.budgets,
            "errors": job.errors,
        }
        if not self.decisions.is_free(space):
            found["decisions"] = [self.decisions.members, self.decisions.choices]
        if job.latency is not None:
            found["latency"] = [row.tolist() for row in space.costs["latency"]]
            if pairs := space.pairs.get("latency"):
                found["latency"] += [[*edge, own.tolist()] for edge, own in pairs.items()]
        return found

    def levels(self) -> dict[str, list[str]]:
        """What profiles choose from: layer, or decision where there are channel levels -> names of
        levels."""
        return (self.channels or self.database).levels()

    def about(self) -> dict[str, Any]:
        task = self.workload.task
        table = {"table": dict(self.table)} if self.table else {}
        return {"task": task.identity, "metric": task.metric.title, **table}

    def start_pool(self) -> Pool:
        return self.workers.pool(self._spec(self.job.fitness, self.workload))

    def start_selection_pool(self) -> Pool | None:
        """Divergence from the dense model on the workload's selection samples, in the job's
        batch-norm mode."""
        if self.workload.selection is None or self.job.search.picks == 1:
            return None
        return LazyPool(self._score_selection)

    def _score_selection(self) -> Pool:
        assert self.workload.selection is not None
        samples = self.workload.selection.load()  # only where there is something to pick
        unseen = replace(self.workload, calibration=samples, selection=None)
        return self.workers.start(self._spec("kl", unseen))

    def _spec(self, fitness: str, workload: Workload) -> ScoringSpec:
        return scoring_spec(self.job, workload, self.database, fitness, self.job.batchnorm)


@overload
def prepare(job: Job, progress: Progress = silent) -> ModelProblem: ...
@overload
def prepare(job: TableJob, progress: Progress = silent) -> TableProblem: ...
def prepare(job: AnyJob, progress: Progress = silent) -> Problem:
    """The job's problem, ready to be searched. Raises ApportionError."""
    return prepare_table(job) if isinstance(job, TableJob) else prepare_model(job, progress)


def prepare_model(
    job: Job, progress: Progress = silent, workload: Workload | None = None
) -> ModelProblem:
    """Build what is missing, check the budgets, and measure the additive table where the job asks
    for it. `workload`: by default the job's, loaded. Raises InfeasibleBudgetError before any
    evaluation, ConfigurationError for a front, and whatever `build` raises."""
    job.bounds()  # a front is refused before anything is built
    with ExitStack() as stack:
        problem = _loaded(job, stack.enter_context(Workers(job.workers)), progress, workload)
        stack.pop_all()  # the problem closes it
    return problem


def _loaded(
    job: Job, workers: Workers, progress: Progress, workload: Workload | None
) -> ModelProblem:
    workload, database = build(job, progress, workers, workload)
    if database.channels is None:
        check_held(workload.model, database, job.recovery)
    key = format.digest(
        {
            "database": database.fingerprint,
            "calibration": data_fingerprint(workload.calibration),
            "batch_size": workload.batch_size,
            "fitness": job.fitness,
            "batchnorm": job.batchnorm,
            **workload.task.key(),
            **({"corrections": job.corrections.score} if job.corrections.score else {}),
            **({"precision": job.workers.precision} if job.workers.precision != "float32" else {}),
        }
    )
    channels = None if database.channels is None else ChannelDatabase(database)
    if channels is None:
        latency = latency_of(job.latency, database) if job.latency else None
        full_space = make_space(job.bounds(), workload.model, database, latency=latency)
    else:
        times = channel_latency(job.latency, channels) if job.latency else None
        full_space = channel_space(job.bounds(), workload.model, channels, times)
    levels = (channels or database).levels()
    fused = _fused(job, workload, database)
    decisions = Decisions.make(
        full_space, job.layers.allowed(levels), job.layers.tied(full_space.layers, fused)
    )
    problem = ModelProblem(
        job=job,
        workload=workload,
        database=database,
        channels=channels,
        workers=workers,
        full_space=full_space,
        decisions=decisions,
        key=key,
        id="",
    ).at(job)
    check_budgets(problem.space)
    if job.errors != "layer":
        table = make_table(job, workload, channels or database, workers, progress)
        problem = replace(
            problem, full_space=replace(full_space, errors=table.rows), table=table.report
        )
    return problem


def _fused(job: Job, workload: Workload, database: LayerDatabase) -> list[list[str]]:
    """What `tie: auto` stands for. Raises ConfigurationError with levels of channels, where
    decisions are no layers."""
    if job.layers.tie != AUTO:
        return []
    if database.channels is not None:
        raise ConfigurationError(
            f"layers.tie: {AUTO} ties layers, and levels of channels are decided by groups; name "
            "the groups"
        )
    return partners(workload.model, database.layers.values(), workload.traced_pass())


def run_search(
    problem: Problem,
    store: RunStore,
    progress: Progress = silent,
    tighter: Sequence[RunResult] | None = None,
) -> list[RunResult]:
    """Every algorithm x seed of the job, one after the other, in the job's order. Stopped at any
    point, the same call goes on where it stopped and ends with the same results. `tighter`: of a
    front, what this gave at the point before. Raises StoreError while another process works on the
    job."""
    job = problem.job
    check_single(job)
    # Names, parameters and budgets are checked for all runs before the first one spends an
    # evaluation.
    for name, parameters in job.search.with_parameters():
        create(name, problem.space, np.random.default_rng(0), job.search.evaluations, parameters)
    spec = job.model_dump(mode="json") | {"store": job.store and masked(job.store)}
    store.add_job(problem.id, spec, problem.describe())
    with store.claim(problem.id, progress):
        results = []
        for number, wanted in enumerate(job_runs(problem)):
            before = None if tighter is None else tighter[number]
            run = store.add_run(wanted)
            rng = np.random.default_rng(run.seed)
            algorithm = create(
                run.algorithm, problem.space, rng, job.search.evaluations, wanted.parameters
            )
            if before is not None:
                begin_from(algorithm, problem, before)
            result = search(
                algorithm,
                problem.space,
                problem.pool(),
                store,
                run,
                problem.key,
                progress,
                problem.decisions.expand,
                lineage(before),
            )
            check_not_dominated(result, before)
            results.append(result)
        for result in results:
            _check_finite(result, job)
        return [pick(result, problem, store, progress) for result in results]


def check_single(job: AnyJob) -> None:
    """Raises ConfigurationError for a job whose schedule is more than one search."""
    if isinstance(job, Job) and job.schedule is not None and job.schedule.kind != "one-shot":
        raise ConfigurationError(
            f"schedule: {job.schedule.kind} is no single search; `apportion prune` runs it"
        )


def _check_finite(result: RunResult, job: AnyJob) -> None:
    """A run of candidates that are all worth nothing has no best one. Raises ConfigurationError."""
    if result.run.state == "finished" and not np.isfinite(result.pick.fitness):
        raise ConfigurationError(
            f"run {result.run.id!r}: the fitness {job.fitness!r} of all candidates is infinite or "
            "not a number: the task gives no finite value for some calibration sample, or no "
            "level within the budgets leaves the model's outputs finite"
        )


def pick(
    result: RunResult, problem: Problem, store: RunStore, progress: Progress = silent
) -> RunResult:
    """The run with its final pick: among the profiles near the best fitness, the one whose outputs
    on samples that neither database nor search saw are nearest to the dense model's (the task's
    divergence). A run that is not finished, and a problem without such samples, keep the best
    fitness."""
    if result.run.state != "finished" or (pool := problem.selection_pool()) is None:
        return result
    return select(result, problem.job.search.picks, pool, store, progress)


def job_runs(problem: Problem) -> list[Run]:
    """The runs that the job asks for, one per algorithm and seed, in its order."""
    config = problem.job.search
    return [
        make_run(problem.id, name, parameters, seed, config.evaluations)
        for name, parameters in config.with_parameters()
        for seed in config.seeds
    ]


def make_run(
    job: str, algorithm: str, parameters: dict[str, Any], seed: int, evaluations: float
) -> Run:
    """A run whose id is the same whenever the same run is asked for.

    Args:
        job: the job's id.
        algorithm: its name.
        parameters: of the algorithm, those that are not the default.
        seed: of all its randomness.
        evaluations: how many it may spend.

    Returns:
        The run, which no store knows yet.
    """
    identity = {
        "job": job,
        "algorithm": algorithm,
        "parameters": parameters,
        "evaluations": float(evaluations),
    }
    name = algorithm.rsplit(":", 1)[-1]
    return Run(
        f"{name}-s{seed}-{format.digest(identity)[:8]}",
        job,
        algorithm,
        parameters,
        seed,
        float(evaluations),
    )
