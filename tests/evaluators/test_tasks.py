"""Tasks by name, what is refused, and a user's own task from its job file to its exported model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from apportion.compressors.errors import (
    ApportionError,
    ConfigurationError,
    DataError,
    JobError,
    UnknownNameError,
)
from apportion.compressors.levels import parse_level
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.data.dataset import Splits, TensorDataset
from apportion.evaluators.scoring.stitched import StitchedScorer
from apportion.evaluators.tasks import registry
from apportion.evaluators.tasks.registry import make_task, register_task
from apportion.evaluators.tasks.task import Metric
from apportion.evaluators.workloads.workload import Workload, data_fingerprint
from apportion.search.cli.main import main
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.building import build
from apportion.search.runs.pipeline import prepare
from tests import tagging
from tests.tagging import Tagging, job_content, sentences, splits, tagger


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workload, LayerDatabase]:
    folder = tmp_path_factory.mktemp("tagging")
    return build(parse_model_job(job_content(folder), folder / "job.yaml"))


def test_a_users_own_task_from_job_file_to_exported_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="apportion[onnx] is not installed")
    recovery = {"lintune": {"epochs": 2}, "adaprune": {"epochs": 1}, "finetune": {"epochs": 1}}
    content = job_content(tmp_path, recovery=recovery, errors="loss")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    assert main(["search", str(tmp_path / "job.yaml"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["league"]
    assert row["evaluations"] == 20
    assert 0 < row["best"] < 1
    out, store = tmp_path / "out", f"sqlite:///{tmp_path / 'apportion.sqlite'}"
    formats = ["safetensors", "compressed", "torch", "onnx", "profile"]
    told = ["--store", store, "-o", str(out), "--format", *formats]
    assert main(["export", row["run"], *told]) == 0
    text = capsys.readouterr().out
    found = json.loads((out / "profile.json").read_text())
    assert found["metric"] == Tagging.metric.to_json()
    assert 80 < found["tag accuracy"]["dense"] < 95  # every eighth tag is another
    steps = ["dense", "stitched", "retuned", "lintuned", "adapruned", "fine-tuned"]
    assert list(found["tag accuracy"]) == steps
    for step in steps:
        assert f"test tag accuracy, {step}: {found['tag accuracy'][step]:.1f} %" in text
    assert len(found["exports"]) == 4
    last = found["tag accuracy"]["fine-tuned"]
    assert all(abs(one["tag accuracy"] - last) <= 0.5 for one in found["exports"].values())
    card = (out / "model_card.md").read_text()
    assert "## Test tag accuracy, %" in card
    assert "image" not in card


@pytest.mark.parametrize("fitness", ["loss", "kl", "error"])
@pytest.mark.parametrize("mode", ["running", "recalibrate"])
def test_fitnesses_are_what_the_task_says(
    tagged: tuple[Workload, LayerDatabase], fitness: str, mode: str
) -> None:
    workload, database = tagged
    task, batch = Tagging(), workload.calibration.batch
    scorer = StitchedScorer(workload, database, fitness, mode)
    candidate = (2,) * len(database.layers)
    model = tagger()
    levels = {name: record.entries[2].level for name, record in database.layers.items()}
    database.stitch(model, {name: parse_level(level) for name, level in levels.items()})
    if mode == "running":
        with torch.no_grad():
            dense, found = (task.forward(m, batch) for m in (tagger(), model))
        expected = {
            "loss": task.loss(found, batch),
            "kl": task.divergence(found, dense, batch),
            "error": task.error(found, batch),
        }[fitness]
        assert scorer.score(candidate) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert 0 < scorer.score(candidate) < 5


def test_padding_counts_nowhere(tagged: tuple[Workload, LayerDatabase]) -> None:
    workload, database = tagged
    batch = {key: tensor.clone() for key, tensor in workload.calibration.batch.items()}
    padding = batch["mask"] == 0
    batch["input_ids"][padding], batch["wanted"][padding] = 3, 1
    other = Workload(
        workload.model, TensorDataset(batch), workload.train, workload.test, 32, task=Tagging()
    )
    candidate = (1,) * len(database.layers)
    for fitness in ("loss", "kl", "error"):
        one, two = (
            StitchedScorer(w, database, fitness, "running").score(candidate)
            for w in (workload, other)
        )
        assert one == two > 0


def test_layers_are_fed_by_samples_whatever_the_batch_holds(
    tagged: tuple[Workload, LayerDatabase],
) -> None:
    """The recorded error of a layer is its squared output error per sample."""
    workload, database = tagged
    seen: list[Tensor] = []
    model = tagger()
    handle = model.get_submodule("hidden").register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0])
    )
    with torch.no_grad():
        for batch in workload.calibration.batches(32):
            workload.task.forward(model, batch)
    handle.remove()
    inputs = torch.cat(seen).double()
    weight = model.get_parameter("hidden.weight").detach().double()
    entry = database.entry("hidden", "unstr-0.75")
    change = database.weight("hidden", "unstr-0.75").double() - weight
    error = float((inputs @ change.T).square().sum()) / len(workload.calibration)
    assert entry.error == pytest.approx(error, rel=1e-4)


def test_another_task_is_another_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key() -> str:
        with prepare(parse_model_job(job_content(tmp_path), tmp_path / "job.yaml")) as problem:
            return problem.key

    first = key()
    assert key() == first
    monkeypatch.setattr(Tagging, "version", 2)
    with pytest.raises(ApportionError, match="other calibration"):
        key()


def test_names_of_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))

    @register_task("mine")
    class Mine(Tagging):
        pass

    assert isinstance(make_task("mine"), Mine)
    assert make_task("mine").identity == "mine"
    assert make_task("tests.tagging:Tagging").identity == "tests.tagging:Tagging"
    with pytest.raises(UnknownNameError, match="did you mean 'image-classification'"):
        make_task("image-clasification")
    with pytest.raises(ConfigurationError, match="task 'no_such:Thing': module 'no_such' cannot"):
        make_task("no_such:Thing")
    with pytest.raises(ConfigurationError, match="'tests.tagging:Tagger' is not a subclass"):
        make_task("tests.tagging:Tagger")
    with pytest.raises(ConfigurationError, match="has no `metric`"):
        make_task("apportion.evaluators.tasks.task:Task")
    content = job_content(tmp_path)
    content["workload"]["task"] = {"kind": "taging"}
    with pytest.raises(JobError, match="workload.task.kind: unknown task 'taging'"):
        parse_model_job(content, tmp_path / "job.yaml")
    with pytest.raises(ConfigurationError, match="cannot be called 'profile'; taken are"):
        Metric("profile", "", higher_is_better=True, tolerance=0)


def with_values(name: str, value: Any) -> type[Tagging]:
    return type("Changed", (Tagging,), {name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("loss", lambda *_: torch.zeros(3), r"loss has the shape \[3\] for a batch of 2 samples"),
        ("loss", lambda *_: torch.tensor(0.0), r"loss has the shape \[\]"),
        ("loss", lambda *_: torch.full((2,), -1.0), "loss is -1 for a sample; it must be 0"),
        ("divergence", lambda *_: torch.ones(2), "dense model from itself is 1; it must be 0"),
        ("error", lambda *_: 1 / 0, r"error failed \(ZeroDivisionError: division by zero\)"),
        ("samples", lambda *_: 3, "a batch of 2 samples holds 3 of them"),
    ],
)
def test_a_task_that_breaks_its_promise_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, message: str
) -> None:
    monkeypatch.setattr(tagging, "Changed", with_values(name, value), raising=False)
    content = job_content(tmp_path)
    content["workload"]["task"] = {"kind": "tests.tagging:Changed"}
    with pytest.raises(ConfigurationError, match=message):
        build(parse_model_job(content, tmp_path / "job.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recovery": {"finetune": {"augment": {}}}}, "Tagging has no augmentation"),
        ({"recovery": {"finetune": {"smoothing": 0.1}}}, "Tagging has no label smoothing"),
    ],
)
def test_what_a_task_lacks_is_refused_before_the_build(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build(parse_model_job(job_content(tmp_path, **changes), tmp_path / "job.yaml"))
    assert not (tmp_path / "database").exists()


def test_data_of_a_users_function_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(message: str) -> None:
        with pytest.raises(DataError, match=message):
            build(parse_model_job(job_content(tmp_path), tmp_path / "job.yaml"))

    monkeypatch.setattr(tagging, "splits", lambda: sentences(5, 0))
    fails("gave a TensorDataset instead of .*Splits")
    monkeypatch.setattr(tagging, "splits", lambda: 1 / 0)
    fails(r"calling it failed \(ZeroDivisionError")
    wrong = TensorDataset({"input_ids": torch.zeros(9, 4).long(), "mask": torch.ones(9, 7)})
    monkeypatch.setattr(tagging, "splits", lambda: Splits(sentences(99, 0), wrong))
    fails(r"test inputs of shape 'input_ids' \[4\], 'mask' \[7\] do not run through model")


def test_trees_that_are_no_batches_are_refused() -> None:
    with pytest.raises(DataError, match=r"\['name'\] is a str; tensors"):
        TensorDataset({"name": "x"})
    with pytest.raises(DataError, match="one first dimension.*found .*3.*4"):
        TensorDataset((torch.zeros(3), torch.zeros(4)))
    with pytest.raises(DataError, match="at least 1"):
        TensorDataset(torch.zeros(0, 2))
    with pytest.raises(DataError, match="one number"):
        TensorDataset(torch.tensor(1.0))


def test_data_are_cut_by_samples_and_told_apart() -> None:
    data = splits().test
    assert isinstance(data, TensorDataset)
    sizes = [len(batch["mask"]) for batch in data.batches(64)]
    assert sizes == [64, 64, 64, 8]
    some = data.subset([7, 3])
    assert torch.equal(some.batch["wanted"][1], data.batch["wanted"][3])
    assert data_fingerprint(some) != data_fingerprint(data.subset([3, 7]))
    turned = TensorDataset(dict(reversed(some.batch.items())))
    assert data_fingerprint(turned) == data_fingerprint(some)  # the order of keys says nothing
