"""A job in steps: each of them an ordinary job on the model that the one before left."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from apportion.compressors.errors import ConfigurationError, InfeasibleBudgetError
from apportion.compressors.progress import Progress, silent
from apportion.db.runs.sqlite import sqlite_url
from apportion.db.runs.store import RunStore
from apportion.evaluators.training.config import FinetuneConfig, RecoveryConfig
from apportion.evaluators.training.recovery import check_recovery
from apportion.evaluators.workloads.workload import Workload, load_workload
from apportion.search.export.compressed_model import SHAPES
from apportion.search.export.exporting import (
    Chosen,
    Exported,
    check_formats,
    check_job,
    export,
    exported_before,
)
from apportion.search.export.registry import resolve
from apportion.search.export.smaller_model import EARLY
from apportion.search.jobs.job import Job
from apportion.search.jobs.schedule import ScheduleConfig
from apportion.search.runs.pipeline import ModelProblem, prepare_model, run_search
from apportion.search.schedules.course import amounts, as_budget
from apportion.search.schedules.netadapt import WEIGHTS, NetAdapt
from apportion.search.schedules.record import Record, begun
from apportion.search.schedules.regrowing import REGROWN, regrow
from apportion.search.space.feasibility import check_budgets

WRITTEN = "safetensors"
"""The format that every step is written in: the next one reads it."""


@dataclass(frozen=True)
class Pruned:
    """The folder, what its schedule.json says, and the final model's files by name."""

    out: Path
    content: dict[str, Any]
    files: dict[str, Path]


def prune(
    job: Job,
    out: str | Path,
    progress: Progress = silent,
    formats: Sequence[str] = ("safetensors",),
) -> Pruned:
    """Bring a job's model to its budgets as its schedule says: `out` has the final model's files,
    `out`/step-1, step-2, ... what each step before left. Stopped at any point, the same call goes
    on there, and ends with the same result.

    Args:
        job: its `schedule` says in which steps; none: in one.
        out: the folder to write to.
        progress: told of all that takes long.
        formats: what the final model is written as.

    Raises:
        ConfigurationError: `out` has the steps of another job.
        ApportionError: whatever `prepare`, `run_search` and `export` raise.
    """
    job.bounds()  # a front is refused before anything is built
    check_job(formats, job)
    if job.schedule is not None and not job.schedule.is_stepwise and set(formats) != {WRITTEN}:
        raise ConfigurationError(
            f"netadapt writes {WRITTEN} alone; a job whose workload has the weights and shapes "
            "exports the other formats"
        )
    job = job.model_copy(update={"schedule": job.schedule or ScheduleConfig.model_validate({})})
    return _Steps(job, Path(out).absolute(), progress, formats).run()


class _Steps:
    def __init__(self, job: Job, out: Path, progress: Progress, formats: Sequence[str]) -> None:
        assert job.schedule is not None
        self._job, self._schedule, self._progress = job, job.schedule, progress
        self._formats = list(dict.fromkeys([WRITTEN, *formats]))
        self._store = RunStore(job.store or sqlite_url(out / "apportion.sqlite"))
        self._workload: Workload = load_workload(job.workload, progress)
        self._dense: nn.Module = self._workload.model
        check_recovery(self._workload, job.recovery)
        self._record: Record = begun(out, job, self._workload)

    def run(self) -> Pruned:
        record, steps = self._record, self._schedule.steps
        if not self._schedule.is_stepwise:
            NetAdapt(self._job, self._workload, record, self._progress).run()
            return self._pruned()
        if "dense" not in record.content:
            record.note(dense=self._dense_costs())
        for step in range(1, steps + 1):
            if not self._is_done(step):
                del record.steps[step - 1 :]
                record.done(self._step(step))
            shutil.rmtree(self._database(step), ignore_errors=True)
        return self._pruned()

    def _pruned(self) -> Pruned:
        record = self._record
        written = record.steps[-1]["files"]
        return Pruned(record.out, record.content, {name: record.out / name for name in written})

    def _is_done(self, step: int) -> bool:
        """Whether all that the next step, or who takes the final model, needs is there."""
        if len(self._record.steps) < step:
            return False
        needed = {*self._record.steps[step - 1]["files"]}
        if step == self._schedule.steps:
            needed |= {form.file for form in resolve(self._formats)}
        elif self._schedule.regrow:
            needed.add(REGROWN)
        return all((self._folder(step) / name).exists() for name in needed)

    def _folder(self, step: int) -> Path:
        """Where a step's model lies."""
        record = self._record
        return record.out if step == self._schedule.steps else record.folder(step)

    def _database(self, step: int) -> Path:
        """Of a step after the first, until it is done; the first one's is the job's."""
        return self._record.folder(step) / "database"

    def _dense_costs(self) -> dict[str, float]:
        """What the dense model costs in each metric that is bounded. Raises InfeasibleBudgetError
        where the last budgets can be told to be out of reach."""
        probe = self._job.model_copy(update={"budgets": {}, "errors": "layer"})
        with prepare_model(probe, self._progress, self._workload) as problem:
            costs, space = problem.full_space.dense, problem.full_space
            bounds = {own.metric: own.bound(costs[own.metric]) for own in self._job.bounds()}
            if problem.channels is None:  # a smaller model can become smaller again
                whole = replace(space, budgets=bounds)
                check_budgets(problem.decisions.reduce(whole))
            return {metric: costs[metric] for metric in bounds}

    def _step(self, step: int) -> dict[str, Any]:
        """Do a step; gives what is kept of it."""
        record, last = self._record, step == self._schedule.steps
        dense = record.content["dense"]
        bounds = amounts(self._schedule.kind, self._job.bounds(), dense, step, self._schedule.steps)
        job = self._job_of(step, bounds)
        with self._prepared(step, job, bounds) as problem:
            problem.teacher = self._dense
            check_formats(self._formats if last else [WRITTEN], problem)
            results = run_search(problem, self._store, self._progress)
            best = Chosen.of(min(results, key=lambda result: result.pick.fitness))
            made = self._exported(best, problem, step)
            costs = {metric: problem.full_space.total(metric, best.candidate) for metric in bounds}
            if self._schedule.regrow and not last:
                regrow(problem, self._finetune(), self._folder(step), self._progress)
        metric = problem.workload.task.metric
        return {
            "step": step,
            "of": self._schedule.steps,
            "budgets": bounds,
            "costs": costs,
            "of_dense": {name: cost / dense[name] for name, cost in costs.items()},
            "run": best.origin["run"],
            "metric": metric.to_json(),
            "measured_on": "test",
            metric.name: made.content[metric.name],
            "files": list(made.files),
        }

    def _prepared(self, step: int, job: Job, bounds: dict[str, float]) -> ModelProblem:
        """Raises InfeasibleBudgetError, in shares of the dense model, which names the step."""
        steps, dense = self._schedule.steps, self._record.content["dense"]
        try:
            return prepare_model(job, self._progress, self._workload if step == 1 else None)
        except InfeasibleBudgetError as error:
            if error.layer is None or steps == 1:
                raise
            share = bounds[error.metric] / dense[error.metric]
            least = error.least * share / error.bound
            raise InfeasibleBudgetError(
                error.metric,
                share,
                least,
                error.layer,
                f"step {step} of {steps} asks {share:.3f} of the dense model, and its levels reach "
                f"{least:.3f} at the least; more iterations go further, or levels that remove more",
            ) from error

    def _exported(self, best: Chosen, problem: ModelProblem, step: int) -> Exported:
        folder, last = self._folder(step), step == self._schedule.steps
        formats = self._formats if last else [WRITTEN]
        before = exported_before(best, problem, folder)
        if before is not None and {form.file for form in resolve(formats)} <= set(before.files):
            return before
        return export(best, problem, folder, self._progress, formats)

    def _job_of(self, step: int, bounds: dict[str, float]) -> Job:
        """The ordinary job that a step is."""
        content = self._job.model_dump(mode="json") | {"schedule": None}
        content["budgets"] = {name: as_budget(name, value) for name, value in bounds.items()}
        recovery = self._recovery(step)
        if step > 1:
            before, own = self._folder(step - 1), content["workload"]
            weights = before / (REGROWN if self._schedule.regrow else WEIGHTS)
            own["model"], own["weights"] = self._job.workload.name, str(weights)
            if (before / SHAPES).exists():
                own["shapes"] = str(before / SHAPES)
            if (before / EARLY).exists():
                recovery = recovery.model_copy(update={"rewind": before / EARLY})
            content["database"] = content["database"] | {"path": str(self._database(step))}
        return Job.model_validate(content | {"recovery": recovery.model_dump(mode="json")})

    def _recovery(self, step: int) -> RecoveryConfig:
        job = self._job.recovery
        if step == self._schedule.steps:
            return job
        train = self._schedule.epochs and not self._schedule.regrow
        return RecoveryConfig(rewind=job.rewind, finetune=self._finetune() if train else None)

    def _finetune(self) -> FinetuneConfig:
        """Of training between steps."""
        given = self._job.recovery.finetune or FinetuneConfig()
        return given.model_copy(update={"epochs": self._schedule.epochs})
