"""Search without a model: the additive problem of a latency table and an error prior, to study
algorithms on in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from apportion.compressors.errors import DataError, DocumentError, JobError, LevelError
from apportion.compressors.kinds.naming import matrices
from apportion.compressors.levels import DENSE, Level, parse_level
from apportion.db.documents.csv_reader import csv_rows
from apportion.db.documents.text import number, read_text
from apportion.db.layers import format
from apportion.evaluators.costs.latency import LatencyTable
from apportion.evaluators.costs.latency_files import read_latency
from apportion.evaluators.models.build import build_model
from apportion.evaluators.scoring.pool import LocalPool, Pool
from apportion.search.jobs.job import TableConfig, TableJob
from apportion.search.runs.problem import Problem
from apportion.search.space.decisions import Decisions
from apportion.search.space.feasibility import check_budgets
from apportion.search.space.space import Candidate, SearchSpace

Cost = tuple[tuple[np.ndarray, ...], float, float]
"""Of one metric: per layer and level, of what is not compressed, of the whole dense model."""


@dataclass(frozen=True)
class TableScorer:
    """The additive error of a candidate; all of it at any fidelity, and within any bound."""

    space: SearchSpace

    def score(self, candidate: Candidate, fidelity: float = 1.0, bound: float = math.inf) -> float:  # noqa: ARG002
        return self.space.error(candidate)


@dataclass
class TableProblem(Problem):
    """A table job with its space."""

    def identity(self) -> dict[str, Any]:
        budgets, costs = self.full_space.budgets, self.full_space.costs
        loads = {metric: [row.tolist() for row in costs[metric]] for metric in budgets}
        return {"problem": self.key, "budgets": budgets, "costs": loads}

    def start_pool(self) -> Pool:
        return LocalPool(partial(TableScorer, self.full_space), 1)


def prepare_table(job: TableJob) -> TableProblem:
    """Read the table, and check the budgets. Raises DataError, JobError, InfeasibleBudgetError."""
    config = job.workload
    table = read_latency(config.table)
    if config.clean:
        table = table.cleaned()
    levels = {layer: list(row) for layer, row in table.seconds.items()}
    errors = (
        _quadratic(levels)
        if config.error == "quadratic"
        else _read_errors(Path(config.error), levels)
    )
    costs = {"latency": _latency(table, levels)}
    if config.model is not None:
        costs["params"] = _params(config, levels)
    bounds = {}
    for budget in job.bounds():
        if budget.metric not in costs:
            known = " and ".join(costs)
            raise JobError(
                "job",
                f"budgets.{budget.metric}",
                f"a table job has {known} (workload.model gives params)",
            )
        bounds[budget.metric] = budget.bound(costs[budget.metric][2])
    space = SearchSpace(
        layers=tuple(levels),
        levels=tuple(tuple(map(str, own)) for own in levels.values()),
        costs={metric: cost[0] for metric, cost in costs.items()},
        base={metric: cost[1] for metric, cost in costs.items()},
        dense={metric: cost[2] for metric, cost in costs.items()},
        budgets=bounds,
        errors=errors,
    )
    check_budgets(space)
    key = format.digest({"levels": space.levels, "errors": [row.tolist() for row in errors]})
    problem = TableProblem(
        job=job, full_space=space, decisions=Decisions.free(space), key=key, id=""
    )
    return problem.at(job)


def _latency(table: LatencyTable, levels: dict[str, list[Level]]) -> Cost:
    return tuple(table.of(layer, own) for layer, own in levels.items()), table.base, table.whole


def _params(config: TableConfig, levels: dict[str, list[Level]]) -> Cost:
    assert config.model is not None
    model = build_model(config.model)
    sizes = {name: parameter.numel() for name, parameter in matrices(model).items()}
    for layer in levels:
        if layer not in sizes:
            raise DataError(str(config.table), f"has a layer {layer!r}, which {config.model} lacks")
    rows = tuple(
        np.array([sizes[layer] * (1 - level.fraction_removed) for level in own])
        for layer, own in levels.items()
    )
    dense = float(sum(p.numel() for p in model.parameters()))
    return rows, dense - sum(sizes[layer] for layer in levels), dense


def _quadratic(levels: dict[str, list[Level]]) -> tuple[np.ndarray, ...]:
    """(i / (n - 1))^2 over a layer's levels from dense to most compressed (Frantar & Alistarh 2022
    (SPDY), section 3.1)."""
    return tuple((np.arange(len(own)) / max(1, len(own) - 1)) ** 2 for own in levels.values())


def _read_errors(path: Path, levels: dict[str, list[Level]]) -> tuple[np.ndarray, ...]:
    """CSV with the columns layer, level, error; a level that is not there but dense is an error."""
    found: dict[tuple[str, Level], float] = {}
    try:
        for line, row in csv_rows(read_text(path), ("layer", "level", "error")):
            key = row["layer"], _level(line, row["level"])
            if key in found:
                raise DocumentError(
                    f"line {line}: level {row['level']!r} of layer {row['layer']!r} stands twice"
                )
            found[key] = _number(line, row["error"])
    except DocumentError as error:
        raise DataError(str(path), str(error)) from error

    def of(layer: str, level: Level) -> float:
        if (layer, level) not in found and level != DENSE:
            raise DataError(str(path), f"has no error of layer {layer!r} at level {level}")
        return found.get((layer, level), 0.0)

    return tuple(np.array([of(layer, level) for level in own]) for layer, own in levels.items())


def _level(line: int, text: str) -> Level:
    try:
        return parse_level(text)
    except LevelError as error:
        raise DocumentError(f"line {line}: {error}") from error


def _number(line: int, text: str) -> float:
    try:
        return number(text)
    except DocumentError as error:
        raise DocumentError(f"line {line}: {error}") from error
