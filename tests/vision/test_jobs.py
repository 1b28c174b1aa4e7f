"""Whole jobs on numbers: build, search, export, and the export's check by the task's
own metric."""

from __future__ import annotations

from pathlib import Path

import pytest

from apportion.db.runs.store import RunStore
from apportion.search.export.exporting import Chosen, export
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import prepare, run_search
from tests.vision import nets


@pytest.mark.parametrize(
    ("model", "task", "data", "metric", "layer"),
    [
        ("mlp", "multi-label", "label_splits", "macro F1", "2"),
        ("mlp", "regression", "number_splits", "root mean squared error", "2"),
        ("two", "regression", "pair_splits", "root mean squared error", "right"),
    ],
)
@pytest.mark.parametrize(
    "formats",
    [["safetensors"], pytest.param(["onnx"], marks=pytest.mark.slow)],
    ids=["torch", "onnx"],
)
def test_a_job_goes_through(
    model: str,
    task: str,
    data: str,
    metric: str,
    layer: str,
    formats: list[str],
    tmp_path: Path,
) -> None:
    content = nets.job(tmp_path, model, task, data)
    with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
        assert layer in problem.database.layers
        (result,) = run_search(problem, RunStore(f"sqlite:///{tmp_path / 'runs.sqlite'}"))
        made = export(Chosen.of(result), problem, tmp_path / "out", formats=formats)
    found = made.content
    assert found["metric"]["name"] == metric
    assert found["costs"]["bits"] <= 0.6
    values, tolerance = found[metric], found["metric"]["tolerance"]
    assert values["dense"] > 0
    assert values["stitched"] != values["dense"]
    # what was written was run again in what runs it, and gives what the stitched model gives
    assert len(found["exports"]) == len(formats)
    for written in found["exports"].values():
        assert written[metric] == pytest.approx(values["stitched"], abs=tolerance)
