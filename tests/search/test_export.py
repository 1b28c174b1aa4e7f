"""Exports: what is written runs as the model that it stands for, or nothing is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from apportion.compressors.errors import ConfigurationError, OutputError, UnknownNameError
from apportion.compressors.levels import parse_level
from apportion.db.layers.packed import load_packed
from apportion.db.layers.profile_files import read_profile
from apportion.db.runs.store import RunStore
from apportion.evaluators.data.splits import TensorSplit
from apportion.evaluators.training.config import RecoveryConfig
from apportion.search.export import exporting, formats, registry
from apportion.search.export.exporting import export, score_profile
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.loop import RunResult
from apportion.search.runs.pipeline import ModelProblem, prepare, run_search

pytest.importorskip("onnxruntime", reason="apportion[onnx] is not installed")
import onnx

from apportion.evaluators.rewriting import onnx_files, onnx_model
from apportion.evaluators.rewriting.processor import instructions


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModelProblem, RunResult]]:
    folder = tmp_path_factory.mktemp("job")
    content: dict[str, Any] = {
        "workload": {"data": {"kind": "digits"}, "calibration_samples": 256, "batch_size": 64},
        "database": {
            "path": str(folder / "db"),
            "levels": ["dense", "rtn:w4", "rtn:w8a8", "mag:unstr-0.50+rtn:w4"],
        },
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


def test_an_onnx_model_has_the_accuracy_of_the_one_it_stands_for(
    found: tuple[ModelProblem, RunResult], tmp_path: Path
) -> None:
    problem, result = found
    exported = export(result, problem, tmp_path / "out", formats=("onnx", "safetensors"))
    accuracy = exported.content["accuracy"]
    assert list(accuracy) == ["dense", "stitched", "retuned", "bias corrected"]
    assert exported.content["exports"]["model.onnx"]["accuracy"] == pytest.approx(
        accuracy["bias corrected"], abs=0.1
    )
    assert sorted(exported.files) == [
        "model.onnx",
        "model.safetensors",
        "model_card.md",
        "profile.json",
    ]
    assert {one["processor"] for one in exported.content["exports"].values()} == {instructions()}
    assert f"(processor: {instructions()})" in exported.files["model_card.md"].read_text()
    proto = onnx.load(exported.files["model.onnx"])
    kinds = [node.op_type for node in proto.graph.node]
    quantized = sum("a8" in level for level in exported.content["profile"].values())
    assert kinds.count("QuantizeLinear") == quantized > 0


def test_a_model_that_is_too_large_for_one_file_has_two(
    found: tuple[ModelProblem, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """protobuf's limit is lowered, in onnx's own checker too: what it takes is a path."""
    problem, result = found
    whole = export(result, problem, tmp_path / "one", formats=("onnx",))
    monkeypatch.setattr(onnx_files, "LARGEST", 1 << 10)
    monkeypatch.setattr(onnx.checker, "MAXIMUM_PROTOBUF", 1 << 10)
    parts = export(result, problem, tmp_path / "two", formats=("onnx",))
    assert set(parts.files) == {*whole.files, "model.onnx.data"}
    assert parts.files["model.onnx"].stat().st_size < whole.files["model.onnx"].stat().st_size
    for key in ("accuracy", "largest_difference"):
        ours, theirs = (e.content["exports"]["model.onnx"][key] for e in (parts, whole))
        assert ours == theirs
    moved = (tmp_path / "two").rename(tmp_path / "elsewhere")
    sizes = [path.stat().st_size for path in moved.glob("model.onnx*")]
    assert parts.content["exports"]["model.onnx"]["bytes"] == sum(sizes)
    inputs = problem.workload.task.inputs(problem.workload.test.subset([0, 1, 2]).batch)
    both = [
        onnx_model.run(onnx_model.session(folder / "model.onnx", 1), inputs)
        for folder in (moved, tmp_path / "one")
    ]
    torch.testing.assert_close(*both, rtol=0, atol=0)
    again = export(result, problem, moved, formats=("safetensors",))
    assert not (moved / "model.onnx.data").exists()  # with its model
    assert "model.onnx" not in again.files


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "ONNX Runtime gives .* % test accuracy instead of .* differ by 0.1"),
        (float("nan"), "ONNX Runtime gives NaN where the model does not"),
    ],
)
def test_a_model_that_disagrees_leaves_nothing_behind(
    value: float,
    said: str,
    found: tuple[ModelProblem, RunResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, result = found
    monkeypatch.setattr(
        onnx_model, "outputs", lambda _opened, inputs: [torch.full((len(inputs[0]), 10), value)]
    )
    with pytest.raises(OutputError, match=said):
        export(result, problem, tmp_path / "out", formats=("onnx",))
    assert not (tmp_path / "out").exists()


def test_every_format_is_the_same_model(
    found: tuple[ModelProblem, RunResult], tmp_path: Path
) -> None:
    problem, result = found
    exported = export(
        result, problem, tmp_path / "out", formats=("safetensors", "compressed", "torch", "profile")
    )
    assert set(exported.files) >= {"model.packed", "model.pt2", "profile.csv", "profile.yaml"}
    files = exported.content["exports"]
    assert (
        files["model.safetensors"]["largest_difference"]
        == files["model.packed"]["largest_difference"]
        == 0.0
    )
    assert files["model.pt2"]["largest_difference"] < 1e-3
    assert {one["accuracy"] for one in files.values()} == {
        exported.content["accuracy"]["bias corrected"]
    }
    assert files["model.packed"]["of_dense"] < 0.3 < 0.99 < files["model.safetensors"]["of_dense"]
    assert files["model.pt2"]["bytes"] < 1 << 20  # and none of the images
    state = load_packed(exported.files["model.packed"])
    plain = load_file(exported.files["model.safetensors"])
    with safe_open(exported.files["model.safetensors"], framework="pt") as opened:
        assert opened.metadata()["format"] == "pt"  # transformers takes no file without
    assert all(torch.equal(state[name], plain[name]) for name in plain)
    levels = problem.database.levels()
    for name in ("profile.json", "profile.csv", "profile.yaml"):
        assert read_profile(exported.files[name], levels) == problem.profile(result.pick.candidate)
    card = exported.files["model_card.md"].read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "unknown"
    assert all(
        f"| {layer} | {level} |" in card for layer, level in exported.content["profile"].items()
    )


def test_a_second_export_replaces_the_first_and_leaves_other_files(
    found: tuple[ModelProblem, RunResult], tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "profile.yaml").write_text("mine too")
    export(found[1], found[0], tmp_path, formats=("safetensors",))
    export(found[1], found[0], tmp_path, formats=("compressed",))
    names = ["README.md", "model.packed", "model_card.md", "profile.json", "profile.yaml"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "profile.yaml").read_text() == "mine too"


def test_a_file_that_holds_another_model_is_refused(
    found: tuple[ModelProblem, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(path: Path) -> dict[str, Any]:
        state = load_packed(path)
        name = next(name for name in state if name.endswith("weight"))
        return state | {name: state[name] + 1e-3}

    monkeypatch.setattr(formats, "load_packed", spoilt)
    with pytest.raises(OutputError, match="model.packed: torch gives outputs that differ"):
        export(found[1], found[0], tmp_path / "out", formats=("safetensors", "compressed"))
    assert not (tmp_path / "out").exists()


def test_trained_models_keep_their_masks_and_grids_and_stay_small(
    found: tuple[ModelProblem, RunResult], tmp_path: Path
) -> None:
    problem, result = found
    steps = RecoveryConfig.model_validate({"adaprune": {"epochs": 1}, "finetune": {"epochs": 1}})
    plain = export(result, problem, tmp_path / "plain", formats=("compressed",))
    out = tmp_path / "out"
    trained = export(result, problem, out, formats=("compressed", "onnx"), recovery=steps)
    assert list(trained.content["accuracy"])[-2:] == ["adapruned", "fine-tuned"]
    assert (
        trained.files["model.packed"].stat().st_size
        < 1.1 * plain.files["model.packed"].stat().st_size
    )
    before, after = (
        load_packed(plain.files["model.packed"]),
        load_packed(trained.files["model.packed"]),
    )
    for layer, level in trained.content["profile"].items():
        name = f"{layer}.weight"
        if level != "dense":
            assert not torch.equal(before[name], after[name])
        if "unstr" in level:
            assert not (after[name][before[name] == 0] != 0).any()
        if "w4" in level:
            assert max(len(row.unique()) for row in after[name].flatten(1)) <= 16
    assert not list(tmp_path.glob("*.recovery"))


def test_a_folded_model_on_power_of_two_grids(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "workload": {
            "data": {"kind": "digits"},
            "calibration_samples": 256,
            "batch_size": 64,
            "fold": True,
        },
        "database": {
            "path": str(tmp_path / "db"),
            "levels": ["dense", "rtn:w8a8"],
            "grid": {"scale": "power-of-two"},
        },
        "layers": {"levels": {"*": ["rtn:w8a8"]}},
        "budgets": {"bits": 0.5},
        "search": {"algorithms": ["dp"], "evaluations": 2},
        "corrections": {"export": ["bias"]},
        "recovery": {"finetune": {"epochs": 1}},
    }
    job = parse_model_job(content, tmp_path / "job.yaml")
    assert job.store is not None
    with prepare(job) as problem:
        result = run_search(problem, RunStore(job.store))[0]
        exported = export(
            result, problem, tmp_path / "out", formats=("compressed", "onnx", "torch")
        )
        state = load_packed(exported.files["model.packed"])
        for layer, level in problem.profile(result.pick.candidate).items():
            grid = problem.database.grid(layer, level)
            assert grid is not None
            assert (grid.scale.frexp().mantissa == 0.5).all()
            assert (state[f"{layer}.weight"].flatten(1) / grid.scale % 1 == 0).all()
    assert exported.content["accuracy"]["fine-tuned"] > exported.content["accuracy"]["dense"] - 2


def test_filter_levels_are_exported_in_the_shapes_that_are_left(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "workload": {"data": {"kind": "digits"}, "calibration_samples": 256, "batch_size": 64},
        "database": {"path": str(tmp_path / "db"), "levels": ["dense", "filter-0.50"]},
        "layers": {"last": "dense"},
        "budgets": {"flops": 0.6},
        "corrections": {"export": ["batchnorm", "bias"]},
    }
    with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
        profile = problem.profile(tuple(len(levels) - 1 for levels in problem.full_space.levels))
        chosen = score_profile(profile, problem, "half of all filters")
        exported = export(
            chosen, problem, tmp_path / "out", formats=("onnx", "torch", "safetensors")
        )
    halves = {name: level == parse_level("filter-0.50") for name, level in profile.items()}
    assert sum(halves.values()) == len(profile) - 1
    state = load_file(exported.files["model.safetensors"])
    whole = sum(tensor.numel() for tensor in state.values() if tensor.dim() > 1)
    left = sorted(
        len(state[f"{name}.weight"]) // (2 if half else 1) for name, half in halves.items()
    )
    proto = onnx.load(exported.files["model.onnx"]).graph
    assert not any(node.op_type == "BatchNormalization" for node in proto.node)
    program = torch.export.load(exported.files["model.pt2"]).state_dict
    for shapes in (
        [list(tensor.dims) for tensor in proto.initializer],
        [list(tensor.shape) for tensor in program.values()],
    ):
        layers = [shape for shape in shapes if len(shape) in (2, 4)]
        rows = sorted(shape[0] for shape in layers)
        assert all(
            0 <= found - wanted <= 1 for found, wanted in zip(rows, left, strict=True)
        )  # 1: a channel that is constant
        assert (
            sum(map(math.prod, layers)) < 0.45 * whole
        )  # of the next layer's weights some go along


@pytest.mark.slow
def test_learned_steps_recover_two_bits(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "workload": {"data": {"kind": "digits"}, "calibration_samples": 256, "batch_size": 64},
        "database": {"path": str(tmp_path / "db"), "levels": ["dense", "rtn:w2"]},
        "budgets": {"bits": 0.5},
        "recovery": {"finetune": {"epochs": 30, "learning_rate": 0.02}},
    }
    with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
        chosen = score_profile(
            problem.profile((1,) * len(problem.full_space.layers)), problem, "all at rtn:w2"
        )
        accuracy = export(chosen, problem, tmp_path / "out", formats=("compressed",)).content[
            "accuracy"
        ]
    assert accuracy["retuned"] < accuracy["dense"] - 1 < accuracy["fine-tuned"]


def test_formats_are_named(found: tuple[ModelProblem, RunResult], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'safetensors'.*profile"):
        export(found[1], found[0], tmp_path / "out", formats=("safetensor",))
    assert not (tmp_path / "out").exists()


def test_two_formats_of_one_file_are_refused(
    found: tuple[ModelProblem, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._FORMATS, "mine", formats.Format)  # so that it goes again
    registry.register("mine")(formats.Safetensors)
    assert "mine" in registry.names()
    with pytest.raises(ConfigurationError, match=r"'mine' writes model\.safetensors"):
        export(found[1], found[0], tmp_path / "out", formats=("safetensors", "mine"))
    assert not (tmp_path / "out").exists()
    exported = export(found[1], found[0], tmp_path / "out", formats=("mine", "mine"))
    assert list(exported.content["exports"]) == ["model.safetensors"]


def test_corrections_of_many_training_images_look_at_random_ones(
    found: tuple[ModelProblem, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, result = found
    read: list[int] = []

    class Noting(TensorSplit):
        def subset(self, indices: Sequence[int], progress: Any = None) -> TensorSplit:
            read.extend(indices)
            return super().subset(indices, progress)

        def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            raise AssertionError(f"all images are more than enough, also {batch_size} at a time")

    train = problem.workload.train
    assert isinstance(train, TensorSplit)
    monkeypatch.setattr(exporting, "TUNING", 100)
    monkeypatch.setattr(problem.workload, "train", Noting(train.inputs, train.labels))
    export(result, problem, tmp_path / "out", formats=("profile",))
    once = read[:100]
    assert len(set(once)) == 100
    assert once != sorted(once)
    assert read == 3 * once  # recorded, re-tuned, bias-corrected
