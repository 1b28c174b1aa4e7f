"""The main job as functions: build the layer database, search, and what both need. The command line
calls these, and so can any Python program (docs/API.md)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, overload

import numpy as np

from apportion.compressors.calibration import FullPass
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.levels import parse_level
from apportion.compressors.progress import Progress
from apportion.db.layers import format
from apportion.db.layers.build import build_database
from apportion.db.layers.database import LayerDatabase
from apportion.db.runs.store import Run, RunStore
from apportion.db.runs.url import masked
from apportion.evaluators.costs.budgets import Budget
from apportion.evaluators.costs.latency import LatencyTable, ask_latency, is_function
from apportion.evaluators.costs.latency_files import read_latency
from apportion.evaluators.costs.model import cost_tables
from apportion.evaluators.scoring.batchnorm import check_single
from apportion.evaluators.scoring.pool import LazyPool, Pool
from apportion.evaluators.scoring.spec import ScoringSpec
from apportion.evaluators.training.recovery import check_held, check_recovery
from apportion.evaluators.workloads.workload import (
    TUNING,
    Workload,
    data_fingerprint,
    first_inputs,
    load_workload,
    model_fingerprint,
    model_outputs,
)
from apportion.search.algorithms.registry import create
from apportion.search.jobs.job import AnyJob, Job, LatencyConfig, TableJob
from apportion.search.runs.loop import RunResult, search
from apportion.search.runs.problem import Problem
from apportion.search.runs.selection import select
from apportion.search.runs.table_problem import TableProblem, prepare_table
from apportion.search.runs.workers import Workers, measured_errors, scoring_spec
from apportion.search.space.decisions import Decisions
from apportion.search.space.feasibility import check_budgets
from apportion.search.space.moves import draw
from apportion.search.space.space import SearchSpace

log = logging.getLogger(__name__)

_AGREEING = 64
"""Candidates that two precisions are compared on."""
_OUTPUTS = 8
"""Calibration inputs whose outputs a database records."""


@dataclass(kw_only=True)
class ModelProblem(Problem):
    """A job with its workload and database loaded."""

    job: Job
    workload: Workload
    database: LayerDatabase
    workers: Workers

    def close(self) -> None:
        super().close()
        self.workers.close()

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


def build(
    job: Job, progress: Progress | None = None, workers: Workers | None = None
) -> tuple[Workload, LayerDatabase]:
    """Load the job's workload and build its layer database, or go on with one that was begun; by
    `workers`, which stays, or by workers of the build's own. Raises ApportionError."""
    if workers is None:
        with Workers(job.workers) as own:
            return build(job, progress, own)
    workload = load_workload(job.workload, progress)
    check_recovery(workload, job.recovery)
    workload.task.check_dense(workload.model, workload.test, job.workload.name, progress)
    _check_batches(job, workload)
    config = job.database
    default = config.expanded()
    found = find_layers(workload.model, _traced(workload))
    built = job.layers.built(found.layers, default)
    database = build_database(
        config.path,
        workload.model,
        found,
        _calibration(job, workload),
        default,
        model_fingerprint=model_fingerprint(workload.model),
        model_outputs=model_outputs(workload.model, first_inputs(workload, _OUTPUTS)),
        calibration_fingerprint=_calibration_fingerprint(job, workload),
        exceptions={name: levels for name, levels in built.items() if levels != default},
        options=config.options(),
        progress=progress,
        executor=workers.executor,
    )
    return workload, database


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


def _traced(workload: Workload) -> FullPass:
    """What layers are found on: two samples, which show most models whole, and then all of them."""
    data, size = workload.calibration, workload.batch_size
    return workload.full_pass(lambda: chain(islice(data.batches(2), 1), data.batches(size)))


def _calibration(job: Job, workload: Workload) -> FullPass:
    """What the database is built from."""
    data, size, augment = workload.calibration, workload.batch_size, job.database.augment
    count = -(-len(data) // size)
    if augment is None:
        return workload.full_pass(lambda: data.batches(size), count)
    count *= augment.rounds
    return workload.full_pass(lambda: workload.augmented(augment, job.workload.seed), count)


def _calibration_fingerprint(job: Job, workload: Workload) -> str:
    """Of the data that the database is built from, of how they are fed, and augmented."""
    data, task = data_fingerprint(workload.calibration), workload.task.key()
    if job.database.augment is None:
        return format.digest({"data": data, **task}) if task else data
    config = job.database.augment.model_dump()
    return format.digest({"images": data, "seed": job.workload.seed, **task, **config})


@overload
def prepare(job: Job, progress: Progress | None = None) -> ModelProblem: ...
@overload
def prepare(job: TableJob, progress: Progress | None = None) -> TableProblem: ...
def prepare(job: AnyJob, progress: Progress | None = None) -> Problem:
    """The job's problem, ready to be searched. Raises ApportionError."""
    return prepare_table(job) if isinstance(job, TableJob) else _prepare_model(job, progress)


def _prepare_model(job: Job, progress: Progress | None = None) -> ModelProblem:
    """Build what is missing, check the budgets, and measure the additive table where the job asks
    for it. Raises InfeasibleBudgetError before any evaluation, and whatever `build` raises."""
    with ExitStack() as stack:
        problem = _loaded(job, stack.enter_context(Workers(job.workers)), progress)
        stack.pop_all()  # the problem closes it
    return problem


def _loaded(job: Job, workers: Workers, progress: Progress | None) -> ModelProblem:
    workload, database = build(job, progress, workers)
    check_held(database, job.recovery)
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
    latency = _latency(job.latency, database) if job.latency else None
    full_space = make_space(job.bounds(), workload, database, latency=latency)
    decisions = Decisions.make(
        full_space, job.layers.allowed(database.levels()), job.layers.tied(full_space.layers)
    )
    identity: dict[str, Any] = {"problem": key, "budgets": job.budgets, "errors": job.errors}
    if not decisions.is_free(full_space):
        identity["decisions"] = [decisions.members, decisions.choices]
    if latency is not None:
        identity["latency"] = [row.tolist() for row in full_space.costs["latency"]]
    problem = ModelProblem(
        job=job,
        workload=workload,
        database=database,
        workers=workers,
        full_space=full_space,
        decisions=decisions,
        key=key,
        id=format.digest(identity)[:8],
    )
    check_budgets(problem.space)
    if job.errors == "loss":
        problem = replace(
            problem,
            full_space=replace(
                full_space, errors=measured_errors(job, workload, database, workers, progress)
            ),
        )
    return problem


def _latency(config: LatencyConfig, database: LayerDatabase) -> LatencyTable:
    """The job's table; warnings say how many times were smoothed, and which levels cost what dense
    costs."""
    if is_function(config.table):
        levels = {
            name: [parse_level(text) for text in texts] for name, texts in database.levels().items()
        }
        table = ask_latency(config.table, levels)
    else:
        table = read_latency(config.table)
    if config.clean:
        table = table.cleaned()
        if table.moved:
            log.warning("%s: %d noisy times were smoothed", table.source, table.moved)
    unknown = {
        level
        for name, levels in database.levels().items()
        for level in table.unknown(name, map(parse_level, levels))
    }
    if unknown:
        log.warning(
            "%s: no times of %s; they cost what dense costs",
            table.source,
            ", ".join(sorted(map(str, unknown))),
        )
    return table


def make_space(
    budgets: Sequence[Budget],
    workload: Workload,
    database: LayerDatabase,
    latency: LatencyTable | None = None,
) -> SearchSpace:
    """The search space of a database: its levels, the costs of every metric, the budgets, and the
    normalised layer errors as additive errors."""
    tables = cost_tables(workload.model, database, latency)
    return SearchSpace(
        layers=tuple(database.layers),
        levels=tuple(tuple(levels) for levels in database.levels().values()),
        costs={metric: table.levels for metric, table in tables.items()},
        base={metric: table.base for metric, table in tables.items()},
        dense={metric: table.dense for metric, table in tables.items()},
        budgets={budget.metric: budget.bound(tables[budget.metric].dense) for budget in budgets},
        errors=tuple(
            np.array([e.normalized_error for e in r.entries]) for r in database.layers.values()
        ),
    )


def run_search(
    problem: Problem, store: RunStore, progress: Progress | None = None
) -> list[RunResult]:
    """Every algorithm x seed of the job, one after the other, in the job's order. Stopped at any
    point, the same call goes on where it stopped and ends with the same results. Raises StoreError
    while another process works on the job."""
    job = problem.job
    # Names, parameters and budgets are checked for all runs before the first one spends an
    # evaluation.
    for name, parameters in job.search.with_parameters():
        create(name, problem.space, np.random.default_rng(0), job.search.evaluations, parameters)
    spec = job.model_dump(mode="json") | {"store": job.store and masked(job.store)}
    store.add_job(problem.id, spec, problem.describe())
    with store.claim(problem.id, progress):
        results = []
        for wanted in job_runs(problem):
            run = store.add_run(wanted)
            rng = np.random.default_rng(run.seed)
            algorithm = create(
                run.algorithm, problem.space, rng, job.search.evaluations, wanted.parameters
            )
            expand = problem.decisions.expand
            results.append(
                search(
                    algorithm,
                    problem.space,
                    problem.pool(),
                    store,
                    run,
                    problem.key,
                    progress,
                    expand,
                )
            )
        return [pick(result, problem, store, progress) for result in results]


def pick(
    result: RunResult, problem: Problem, store: RunStore, progress: Progress | None = None
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
    """A run whose id is the same whenever the same run is asked for."""
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


def precision_agrees(problem: ModelProblem, progress: Progress | None = None) -> float:
    """Spearman's rank correlation between the fitnesses of 64 random profiles within the budgets in
    the job's precision and in float32. Below 0.99 or so, a lower precision changes which profile is
    found."""
    from scipy.stats import spearmanr  # takes most of a second to import

    rng = np.random.default_rng(0)
    space = problem.space
    drawn = dict.fromkeys(draw(space, rng) for _ in range(8 * _AGREEING))
    requests = [(problem.decisions.expand(candidate), 1.0) for candidate in list(drawn)[:_AGREEING]]
    found = []
    for precision in (problem.job.workers.precision, "float32"):
        job = problem.job.model_copy(
            update={"workers": problem.job.workers.model_copy(update={"precision": precision})}
        )
        with problem.workers.pool(
            scoring_spec(job, problem.workload, problem.database, job.fitness, job.batchnorm)
        ) as pool:
            scores = []
            for done, score in enumerate(pool.evaluate(requests)):
                scores.append(score.fitness)
                if progress:
                    progress(f"check ranks, {precision}", done + 1, len(requests))
        found.append(scores)
    return float(spearmanr(found[0], found[1]).statistic)
