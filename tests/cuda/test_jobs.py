"""Whole jobs on the GPU: build, search, corrections, training, export, and the export's check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apportion.db.layers.database import LayerDatabase
from apportion.db.runs.store import RunStore
from apportion.search.export.exporting import Chosen, export
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import prepare, run_search
from tests.search import test_language_jobs as language_jobs
from tests.vision import nets

GPU = {"count": 0, "gpus": 1}


def numbers(folder: Path) -> dict[str, Any]:
    store = {"store": f"sqlite:///{folder / 'runs.sqlite'}"}
    return {**nets.job(folder, "two", "regression", "pair_splits"), **store}


def digits(folder: Path) -> dict[str, Any]:
    return {
        "workload": {"data": {"kind": "digits"}, "calibration_samples": 256, "batch_size": 64},
        "database": {
            "path": str(folder / "db"),
            "levels": ["dense", "w8a8", "unstr-0.50", "2:4+w4", "filter-0.25"],
        },
        "budgets": {"bits": 0.25},
        "search": {"algorithms": ["spdy", "ga"], "evaluations": 20},
        "corrections": {"export": ["batchnorm", "bias"]},
        "recovery": {"adaprune": {"epochs": 1}, "finetune": {"epochs": 2, "teacher": 0.5}},
        "store": f"sqlite:///{folder / 'runs.sqlite'}",
    }


def language(make: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    def content(folder: Path) -> dict[str, Any]:
        return {
            **language_jobs.job(folder, make(folder)),
            "corrections": {"score": ["bias"], "export": ["statistics"]},
            "recovery": {"finetune": {"epochs": 1, "teacher": 1.0}},
        }

    return content


JOBS = {
    "digits": digits,
    "two inputs": numbers,
    "text-classification": language(language_jobs.classification),
    "causal-lm": language(language_jobs.running),
    "question-answering": language(language_jobs.squad),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_job_goes_through(name: str, tmp_path: Path) -> None:
    content = {**JOBS[name](tmp_path), "workers": GPU}
    torch.cuda.reset_peak_memory_stats()
    with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
        results = run_search(problem, RunStore(content["store"]))
        made = export(Chosen.of(results[0]), problem, tmp_path / "out", formats=["safetensors"])
    assert torch.cuda.max_memory_allocated() > 0
    values = made.content[made.content["metric"]["name"]]
    (written,) = made.content["exports"].values()
    last = list(values.values())[-1]
    tolerance = made.content["metric"]["tolerance"]
    assert written[made.content["metric"]["name"]] == pytest.approx(last, abs=tolerance)


@pytest.mark.parametrize("name", ["digits", "causal-lm"])
def test_databases_are_those_of_the_cpu(name: str, tmp_path: Path) -> None:
    databases = []
    for what, workers in (("cpu", {"count": 0}), ("gpu", GPU)):
        folder = tmp_path / what
        folder.mkdir()
        content = {**JOBS[name](folder), "workers": workers}
        with prepare(parse_model_job(content, folder / "job.yaml")) as problem:
            databases.append(LayerDatabase.open(problem.database.path))
    cpu, gpu = databases
    assert list(cpu.layers) == list(gpu.layers)
    for layer, record in cpu.layers.items():
        other = [entry.error for entry in gpu.layers[layer].entries]
        np.testing.assert_allclose([e.error for e in record.entries], other, rtol=5e-3, atol=1e-9)
