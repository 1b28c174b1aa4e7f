"""A job from build to an export that is loaded again as users load it, and what must hold of
every kind of model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.db.runs.store import RunStore
from apportion.evaluators.costs.model import cost_tables
from apportion.evaluators.workloads.config import WorkloadConfig
from apportion.evaluators.workloads.evaluate import evaluate
from apportion.evaluators.workloads.workload import load_workload
from apportion.search.export.exporting import Chosen, export
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import ModelProblem, prepare, run_search


def gone_through(
    content: dict[str, Any], folder: Path, formats: list[str], stays_dense: Collection[str] = ()
) -> dict[str, Any]:
    """The content of profile.json, after checks that all matrices are compressible but the
    parameters `stays_dense`, and that the files are the model that was scored.

    Args:
        content: of the job.
        folder: where all is written.
        formats: what to export.
        stays_dense: names of parameters; of tied ones the first.
    """
    with prepare(parse_model_job(content, folder / "job.yaml")) as problem:
        _check_matrices(problem, stays_dense)
        (result,) = run_search(problem, RunStore(f"sqlite:///{folder / 'runs.sqlite'}"))
        made = export(Chosen.of(result), problem, folder / "out", formats=formats)
        found, metric = made.content, problem.workload.task.metric
        values = list(found[metric.name].values())
        assert len(found["exports"]) == len(formats)
        for written in found["exports"].values():  # run in what runs it
            assert metric.agree(written[metric.name], values[-1])
        assert any(level != "dense" for level in found["profile"].values())
        assert values[1] != values[0]
        if "safetensors" in formats:
            file = str(made.files["model.safetensors"])
            _check_file(problem, {**content["workload"], "weights": file}, found, values[-1])
    return found


def _check_matrices(problem: ModelProblem, stays_dense: Collection[str]) -> None:
    parameters = dict(problem.workload.model.named_parameters())
    assert set(stays_dense) <= set(parameters)
    matrices = sum(
        parameter.numel()
        for name, parameter in parameters.items()
        if sum(size > 1 for size in parameter.shape) > 1 and name not in stays_dense
    )
    assert sum(record.size for record in problem.database.layers.values()) == matrices


def _check_file(
    problem: ModelProblem, workload: dict[str, Any], found: dict[str, Any], value: float
) -> None:
    """The file as the weights of a job's model: its metric, its zeros and what they cost."""
    again = load_workload(WorkloadConfig.model_validate(workload))
    assert evaluate(again, again.model, "cpu") == pytest.approx(value, rel=1e-6)
    table = cost_tables(again.model, problem.database)["params"]
    left = 0
    for name, record in problem.database.layers.items():
        weight = record.where.read(again.model)
        dense = found["profile"][name] == "dense"  # whatever zeros it has
        left += weight.numel() if dense else int(torch.count_nonzero(weight))
    assert (table.base + left) / table.dense == pytest.approx(found["costs"]["params"], rel=1e-9)
