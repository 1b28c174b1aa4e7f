"""Corrections and training after compression, on tasks and batches of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from apportion.db.runs.store import RunStore
from apportion.search.export.exporting import export
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import ModelProblem, prepare, run_search
from tests import language
from tests.search.test_language_jobs import classification, job, running, squad


def divergence(problem: ModelProblem, file: Path) -> float:
    """From the dense model, of exported weights, on the calibration data."""
    workload, task = problem.workload, problem.workload.task
    batch = workload.calibration.batch
    with torch.no_grad():
        dense = task.reference(task.forward(workload.model, batch), batch)
        other = type(workload.model)(workload.model.config)
        other.load_state_dict(load_file(file), strict=False)
        return float(task.divergence(task.forward(other.eval(), batch), dense, batch).mean())


def still(model: nn.Module) -> nn.Module:
    """Without dropout: its noise is more than what a few steps win."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def classifier() -> nn.Module:
    return still(language.classifier())


def causal() -> nn.Module:
    return still(language.causal())


def answerer() -> nn.Module:
    return still(language.answerer())


@pytest.mark.parametrize("make", [classification, running, squad])
@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({"corrections": {"export": ["statistics"]}}, 1.1),
        ({"corrections": {"export": ["bias"]}}, 1.1),
        ({"recovery": {"lintune": {"epochs": 3}}}, 1.0),
        ({"recovery": {"adaprune": {"epochs": 3}}}, 1.0),
        ({"recovery": {"finetune": {"epochs": 3, "learning_rate": 1e-3, "teacher": 1.0}}}, 1.0),
    ],
    ids=["statistics", "bias", "lintune", "adaprune", "finetune"],
)
def test_the_model_comes_nearer_to_the_dense_one(
    make: Any, changes: dict[str, Any], most: float, tmp_path: Path
) -> None:
    found: list[float] = []
    changed: list[dict[str, Any]] = [{"corrections": {"export": []}}, changes]
    workload = make(tmp_path)
    workload["model"] = workload["model"].replace("tests.language", __name__)
    for more in changed:
        content = {**job(tmp_path, workload), "budgets": {"flops": 0.7}, **more}
        with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
            (result,) = run_search(problem, RunStore(content["store"]))
            out = export(result, problem, tmp_path / f"out-{len(found)}")
            found.append(divergence(problem, out.files["model.safetensors"]))
    assert 0 < found[1] < most * found[0]
