"""The job file: what to compress, how far, and how to search. docs/JOBS.md describes every key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from apportion.compressors.errors import ConfigurationError
from apportion.db.documents.section import Section
from apportion.db.runs.url import reference
from apportion.evaluators.costs.budgets import Budget
from apportion.evaluators.scoring.batchnorm import check_mode
from apportion.evaluators.scoring.fitness import criterion
from apportion.evaluators.training.config import RecoveryConfig
from apportion.evaluators.workloads.config import WorkloadConfig
from apportion.search.jobs.channel_checks import check_channels
from apportion.search.jobs.layers import LayersConfig
from apportion.search.jobs.points import is_front, parse_points, points_of
from apportion.search.jobs.schedule import ScheduleConfig
from apportion.search.jobs.sections import (
    CorrectionsConfig,
    DatabaseConfig,
    LatencyConfig,
    SearchConfig,
    WorkersConfig,
    explained,
)
from apportion.search.jobs.table_checks import check_fisher

_STORE = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"url": {"type": "string"}, "password_env": {"type": "string"}},
            "required": ["url"],
            "additionalProperties": False,
        },
        {"type": "null"},
    ],
}
LEAST_EVALUATIONS = 4
"""Of a front, at each point."""


def _store(value: object) -> object:
    if not isinstance(value, dict):
        return value
    with explained():
        return reference(value)


class _Search(Section):
    """What every job has."""

    budgets: dict[str, float | str | tuple[float | str, ...]] = Field(
        default_factory=dict,
        description="Metric -> upper bound, as a share of the dense model (0.25, 25%, 4x) or an "
        "amount (1.2MiB, 2.5ms); of one metric a list of them: the points of a front.",
    )
    search: SearchConfig = Field(default_factory=lambda: SearchConfig.model_validate({}))
    store: Annotated[str | None, BeforeValidator(_store), WithJsonSchema(_STORE)] = Field(
        None,
        description="URL of the run store; {url: URL, password_env: NAME} where the variable NAME "
        "holds its password, env:NAME where it holds the URL; default: apportion.sqlite beside the "
        "job file.",
    )

    @field_validator("budgets")
    @classmethod
    def _budgets(cls, budgets: dict[str, Any]) -> dict[str, Any]:
        with explained():
            metrics = [budget.metric for budget in parse_points(budgets)[0]]
        if len(set(metrics)) < len(metrics):
            raise ValueError("latency is bounded twice: as latency and as speedup")
        return budgets

    @model_validator(mode="after")
    def _front(self) -> Self:
        if self.is_front and self.search.evaluations < LEAST_EVALUATIONS:
            raise ValueError(
                f"search.evaluations: {self.search.evaluations}, and a front needs "
                f"{LEAST_EVALUATIONS} at each point: for the two starting profiles, and for what "
                "the tighter point's run found"
            )
        return self

    @property
    def is_front(self) -> bool:
        """Whether a budget is a list of points."""
        return is_front(self.budgets)

    def points(self) -> list[Self]:
        """A job for each point, the tightest first; the job itself where it has one."""
        if not self.is_front:
            return [self]
        return [self.model_copy(update={"budgets": own}) for own in points_of(self.budgets)]

    def bounds(self) -> list[Budget]:
        """Raises ConfigurationError for a front, which has others at each point."""
        if self.is_front:
            raise ConfigurationError(
                "budgets: a list of points is a front, and this takes one point; `apportion "
                "search` and `apportion submit` take fronts"
            )
        return parse_points(self.budgets)[0]

    @property
    def bounded(self) -> set[str]:
        """The metrics that have a budget."""
        return {budget.metric for budget in parse_points(self.budgets)[0]}


class TableConfig(Section):
    """A workload without a model: a latency table and a prior of the error, to study algorithms
    on."""

    table: Path = Field(description="Latency table: SPDY's text format, or CSV.")
    error: str = Field(
        "quadratic",
        description="Additive error of a layer's levels: quadratic, (i / (n - 1))^2 from dense "
        "down, or a CSV file with the "
        "columns layer, level, error.",
    )
    model: str | None = Field(
        None, description="A model whose layers have the table's names: gives the metric params."
    )
    clean: bool = Field(
        False, description="Make times non-increasing in sparsity, by isotonic regression."
    )


class TableJob(_Search):
    """A search on a table: the fitness is the additive error."""

    workload: TableConfig

    @property
    def fitness(self) -> str:
        return "error"


class Job(_Search):
    """One job: a search for the best profile of one workload within budgets."""

    workload: WorkloadConfig
    database: DatabaseConfig
    latency: LatencyConfig | None = Field(
        None, description="Times of layers, for the metric latency."
    )
    errors: Literal["layer", "fisher", "probe", "loss", "kl"] = Field(
        "layer",
        description="The additive table: layer (normalised squared layer error), fisher (KL to "
        "second order, from gradients), probe (layer errors as KL by two evaluations a layer), or "
        "measured level by level: loss (its rise) or kl (KL to the dense model).",
    )
    fitness: str = Field(
        "kl", description="What search minimises: kl (to the dense model's outputs), loss or error."
    )
    batchnorm: str = Field(
        "recalibrate", description="Batch-norm while scoring: running, batch or recalibrate."
    )
    corrections: CorrectionsConfig = Field(
        default_factory=lambda: CorrectionsConfig.model_validate({})
    )
    recovery: RecoveryConfig = Field(default_factory=lambda: RecoveryConfig.model_validate({}))
    schedule: ScheduleConfig | None = Field(
        None, description="Steps in which `apportion prune` reaches the budgets; default: one."
    )
    layers: LayersConfig = Field(default_factory=lambda: LayersConfig.model_validate({}))
    workers: WorkersConfig = Field(default_factory=lambda: WorkersConfig.model_validate({}))

    @model_validator(mode="after")
    def _has_times(self) -> Job:
        if self.latency is None and "latency" in self.bounded:
            raise ValueError("a latency budget needs times: latency: {table: FILE}")
        return self

    @model_validator(mode="after")
    def _channels(self) -> Job:
        with explained():
            check_channels(self.database, self.layers, self.corrections, self.recovery)
        return self

    @model_validator(mode="after")
    def _schedule(self) -> Job:
        levels = self.database.expanded()
        with explained():
            if self.recovery.rewind is not None and any(own.quantization for own in levels):
                raise ConfigurationError(
                    "recovery.rewind: early weights lie on no grid, and database.levels has "
                    "quantized levels; quantize the final model in a job of its own"
                )
            if self.schedule is not None:
                if self.is_front and self.schedule.kind != "one-shot":
                    raise ConfigurationError(
                        f"schedule: {self.schedule.kind} trains its way to one point, and budgets "
                        "has a list of them"
                    )
                self.schedule.check(levels, self.bounded, self.recovery, self.workload)
        return self

    @model_validator(mode="after")
    def _table(self) -> Job:
        if self.errors == "fisher":
            with explained():
                check_fisher([*self.database.expanded(), *self.layers.own_levels()])
        return self

    @field_validator("fitness")
    @classmethod
    def _fitness(cls, fitness: str) -> str:
        with explained():
            criterion(fitness)
        return fitness

    @field_validator("batchnorm")
    @classmethod
    def _batchnorm(cls, mode: str) -> str:
        with explained():
            check_mode(mode)
        return mode


AnyJob = Job | TableJob
