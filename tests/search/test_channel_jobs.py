"""Whole jobs with channel levels: what is exported is as small, as good and as cheap as it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model

import apportion
from apportion.compressors.errors import ApportionError, JobError
from apportion.compressors.kinds.find import find_layers
from apportion.db.runs.store import RunStore
from apportion.evaluators.models.build import build_model
from apportion.evaluators.workloads.evaluate import evaluate
from apportion.search.algorithms.registry import names
from apportion.search.export.exporting import export, score_profile
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import ModelProblem, prepare, run_search
from tests.channel_jobs import TASK, channel_problem
from tests.compressors.groups.test_find import Graph

CHANNELS = {
    "workload": {"data": {"kind": "digits"}, "calibration_samples": 128, "batch_size": 64},
    "database": {
        "path": "channels",
        "levels": ["dense", "channels-0.25", "channels-0.50", "channels-0.75"],
        "channels": {"multiple": 4},
    },
    "budgets": {"flops": "2x", "params": 0.6},
    "search": {"algorithms": ["evopress"], "evaluations": 10},
    "workers": {"count": 0, "cpus": 1},
}


def job(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    content = {**CHANNELS, **changes}
    content["database"] = {**content["database"], "path": str(tmp_path / "channels")}
    return content


def searched(content: dict[str, Any], tmp_path: Path) -> tuple[ModelProblem, Any]:
    problem = prepare(parse_model_job(content, tmp_path / "job.yaml"))
    (result,) = run_search(problem, RunStore(f"sqlite:///{tmp_path / 'runs.sqlite'}"))
    return problem, result


def test_the_exported_model_is_what_it_says(tmp_path: Path) -> None:
    content = job(tmp_path, recovery={"finetune": {"epochs": 1}})
    problem, result = searched(content, tmp_path)
    with problem:
        made = export(result, problem, tmp_path / "out", formats=["safetensors", "torch", "onnx"])
    told = made.content
    assert set(made.files) >= {"model.safetensors", "shapes.json", "model.onnx", "model.pt2"}
    # Another instance of the class, by what the files say alone.
    model = build_model("digits_resnet")
    apportion.resize(model, json.loads((tmp_path / "out" / "shapes.json").read_text()))
    load_model(model, str(tmp_path / "out" / "model.safetensors"))
    assert evaluate(problem.workload, model) == pytest.approx(told["accuracy"]["fine-tuned"])
    dense = build_model("digits_resnet")
    for metric, count in (("params", parameters), ("flops", multiplications)):
        share = count(model, problem) / count(dense, problem)
        assert told["costs"][metric] == pytest.approx(share)
        assert share <= told["budgets"][metric]
    assert told["accuracy"]["fine-tuned"] > 90
    assert "channels-" in str(told["profile"])


def parameters(model: torch.nn.Module, _: ModelProblem) -> int:
    return sum(p.numel() for p in model.parameters())


def multiplications(model: torch.nn.Module, problem: ModelProblem) -> int:
    found = find_layers(model, problem.workload.traced_pass())
    return sum(found.macs.values()) + found.base


def test_levels_of_layers_go_together_with_channels(tmp_path: Path) -> None:
    levels = ["dense", "w8a8", "channels-0.50", "channels-0.50+w8a8", "channels-0.50+2:4+w8a8"]
    database = {**CHANNELS["database"], "levels": levels}  # type: ignore[dict-item]
    content = job(tmp_path, database=database, budgets={"bits": "6x", "flops": "1.5x"})
    problem, result = searched(content, tmp_path)
    with problem:
        made = export(result, problem, tmp_path / "out", formats=["compressed", "onnx"])
        again = score_profile(problem.profile(result.pick.candidate), problem, "there")
        assert again.fitness == result.pick.fitness
    packed = made.content["exports"]["model.packed"]["of_dense"]
    assert packed == pytest.approx(made.content["costs"]["bits"], abs=0.03)  # headers
    assert made.content["costs"]["bits"] <= 1 / 6
    assert made.content["activations"]


def test_a_smaller_model_is_the_next_jobs_workload(tmp_path: Path) -> None:
    problem, result = searched(job(tmp_path), tmp_path)
    with problem:
        export(result, problem, tmp_path / "out")
    chained = job(tmp_path, budgets={"bits": "3x"})
    chained["workload"] |= {
        "model": "digits_resnet",
        "weights": str(tmp_path / "out" / "model.safetensors"),
        "shapes": str(tmp_path / "out" / "shapes.json"),
    }
    chained["database"] = {"path": str(tmp_path / "second"), "levels": ["dense", "w8", "w4"]}
    second, found = searched(chained, tmp_path)
    with second:
        made = export(found, second, tmp_path / "both", formats=["compressed"])
    shapes = [json.loads((tmp_path / name / "shapes.json").read_text()) for name in ("out", "both")]
    assert shapes[0] == shapes[1]  # the class is as small as before
    first = json.loads((tmp_path / "out" / "profile.json").read_text())["accuracy"]
    assert made.content["accuracy"]["dense"] == pytest.approx(first["retuned"])
    missing = {**chained["workload"], "shapes": str(tmp_path / "none.json")}
    with pytest.raises(ApportionError, match=r"none\.json"):
        prepare(parse_model_job({**chained, "workload": missing}, tmp_path / "job.yaml"))
    (tmp_path / "odd.json").write_text('{"conv1.weight": "large"}')
    odd = {**chained["workload"], "shapes": str(tmp_path / "odd.json")}
    with pytest.raises(ApportionError, match=r"odd\.json: expected a JSON object"):
        prepare(parse_model_job({**chained, "workload": odd}, tmp_path / "job.yaml"))


@pytest.mark.parametrize("algorithm", [n for n in names() if n != "race"])
def test_every_algorithm_meets_the_budgets(tmp_path: Path, algorithm: str) -> None:
    model, x = Graph(["conv", "add", "conv", "cat"], 0).eval(), torch.randn(32, 3, 6, 6)
    with channel_problem(
        model,
        x,
        tmp_path / "d",
        budgets={"flops": "2x", "params": 0.7},
        search={"algorithms": [algorithm], "evaluations": 8},
        batchnorm="running",
    ) as problem:
        (result,) = run_search(problem, RunStore(f"sqlite:///{tmp_path / 'runs.sqlite'}"))
        told = problem.ratios(result.pick.candidate)
        assert told["flops"] <= 0.5
        assert told["params"] <= 0.7
        uniform = problem.ratios(tuple(problem.describe()["uniform"]))
        assert uniform["flops"] <= 0.5


@pytest.mark.parametrize("criterion", ["obs", "l1", "l2", "fpgm", "taylor", "random"])
def test_every_criterion_orders_channels(tmp_path: Path, criterion: str) -> None:
    model, x = Graph(["conv", "conv"], 0).eval(), torch.randn(32, 3, 6, 6)
    options = {"channels": {"multiple": 2, "criterion": criterion}}
    with channel_problem(model, x, tmp_path / "d", database_options=options) as problem:
        assert problem.channels is not None
        for order in problem.channels.content.orders.values():
            assert sorted(order.tolist()) == list(range(len(order)))


def changed(section: str, **keys: Any) -> dict[str, Any]:
    return {section: {**CHANNELS.get(section, {}), **keys}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corrections": {"score": ["bias"]}}, "'bias' compares channels"),
        ({"corrections": {"export": ["statistics"]}}, "'statistics' compares channels"),
        ({"recovery": {"adaprune": {}}}, "recovery.adaprune"),
        ({"recovery": {"lintune": {}}}, "recovery.lintune"),
        ({"layers": {"skip": ["conv1"]}}, "database.channels.skip names"),
        ({"layers": {"first": "dense"}}, "layers.first"),
        (changed("database", sequential=True), "database.sequential"),
        (
            changed("database", levels=["dense", "channels-0.5+unstr-0.5"]),
            "N:M patterns and quantization go",
        ),
        (changed("database", levels=["dense", "channels-0.5", "unstr-0.5"]), "job of its own"),
        (changed("database", levels=["dense", "w4"]), "no level channels-S"),
        (
            changed("database", levels=["dense", "channels-0.5+w4"], grid={"per": "tensor"}),
            "grid.per: tensor",
        ),
        (changed("database", channels={"criterion": "best"}), "unknown criterion 'best'"),
        (changed("database", channels={"multiple": 0}), "greater than or equal to 1"),
        (changed("workload", shapes="shapes.json"), "name it too"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError, match=message):
        parse_model_job({**CHANNELS, **changes}, tmp_path / "job.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (changed("database", channels={"skip": ["nothing.*"]}), "unknown layer 'nothing"),
        (changed("database", channels={"skip": ["*"]}), "no channels of the model can go"),
        ({"budgets": {"flops": 0.01}}, "cannot be met"),
    ],
)
def test_what_the_model_cannot_have_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    content = job(tmp_path, **changes)
    with pytest.raises(ApportionError, match=message):
        prepare(parse_model_job(content, tmp_path / "job.yaml"))


def test_a_model_without_groups_is_refused(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3)).eval()
    with pytest.raises(ApportionError, match="no channels of the model can go"):
        apportion.prepare(
            model,
            task=TASK,
            calibration=[torch.randn(8, 4)],
            test=[torch.randn(8, 4)],
            levels=["dense", "channels-0.50"],
            budgets={"flops": 0.9},
            database=tmp_path / "d",
        )


def test_huggingface_folders_are_refused(tmp_path: Path) -> None:
    problem, result = searched(job(tmp_path), tmp_path)
    with problem, pytest.raises(ApportionError, match="safetensors writes shapes.json"):
        export(result, problem, tmp_path / "out", formats=["huggingface"])
    assert not (tmp_path / "out").exists()
