"""Exports to ONNX: what is written runs as the model that it stands for, or nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compressors.errors import OutputError, UnknownNameError
from db.runs import RunStore
from search.export import export
from search.job_file import parse_model_job
from search.pipeline import ModelProblem, prepare, run_search
from search.run import RunResult

pytest.importorskip("onnxruntime", reason="apportion[onnx] is not installed")
import onnx

from evaluators import onnx_model


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModelProblem, RunResult]]:
    folder = tmp_path_factory.mktemp("job")
    content: dict[str, Any] = {
        "workload": {"data": {"kind": "digits"}, "calibration_samples": 256, "batch_size": 64},
        "database": {"path": str(folder / "db"), "levels": ["dense", "rtn:w4", "rtn:w8a8", "mag:unstr-0.50+rtn:w4"]},
        "budgets": {"bits": 0.25},
        "fitness": "loss",
        "batchnorm": "batch",  # by which the best of the few quantizes inputs
        "search": {"algorithms": ["random"], "evaluations": 6},
        "corrections": {"export": ["batchnorm", "bias"]},
    }
    job = parse_model_job(content, folder / "job.yaml")
    assert job.store is not None
    with prepare(job) as problem:
        yield problem, run_search(problem, RunStore(job.store))[0]


def test_an_onnx_model_has_the_accuracy_of_the_one_it_stands_for(found: tuple[ModelProblem, RunResult], tmp_path: Path) -> None:
    problem, result = found
    exported = export(result, problem, tmp_path / "out", formats=("onnx", "safetensors"))
    accuracy = exported.content["accuracy"]
    assert set(accuracy) == {"dense", "stitched", "retuned", "bias corrected", "onnx"}
    assert accuracy["onnx"] == pytest.approx(accuracy["bias corrected"], abs=0.1)
    assert sorted(exported.files) == ["model.onnx", "model.safetensors", "profile.json"]
    proto = onnx.load(exported.files["model.onnx"])
    kinds = [node.op_type for node in proto.graph.node]
    quantized = sum("a8" in level for level in exported.content["profile"].values())
    assert kinds.count("QuantizeLinear") == quantized > 0


def test_a_model_that_disagrees_leaves_nothing_behind(
    found: tuple[ModelProblem, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, result = found
    monkeypatch.setattr(onnx_model, "run", lambda _opened, inputs: torch.zeros(len(inputs), 10))
    with pytest.raises(OutputError, match="ONNX Runtime gives .* % test accuracy instead of"):
        export(result, problem, tmp_path / "out", formats=("onnx",))
    assert not (tmp_path / "out").exists()


def test_formats_are_named(found: tuple[ModelProblem, RunResult], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="safetensors"):
        export(found[1], found[0], tmp_path / "out", formats=("safetensor",))
    assert not (tmp_path / "out").exists()
