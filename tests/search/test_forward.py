"""The same weights with another forward are another model; another processor's rounding is not; and
what version 0.1.0 wrote still opens."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.compressors.errors import DatabaseError, DatabaseMismatchError
from apportion.db.layers.database import LayerDatabase
from apportion.db.runs.store import RunStore
from apportion.evaluators.models import build as models
from apportion.evaluators.models.networks import CifarResNet
from apportion.evaluators.workloads.workload import model_fingerprint, model_outputs
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs import building
from apportion.search.runs.building import build
from apportion.search.runs.pipeline import prepare, run_search
from tests.fitted import fitted

V0_1_0 = Path(__file__).parents[1] / "fixtures" / "v0_1_0"


class Wrapped(CifarResNet):
    """The digits network, whose forward a user corrects in one of many places."""

    way = "as it was"

    def __init__(self) -> None:
        super().__init__(1, widths=(4, 8, 8), channels=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "input":
            x = x * 0.9
        y = super().forward(x)
        if self.way == "outputs":
            return y / 2
        if self.way == "one output":
            return torch.cat([y[:, :-1], y[:, -1:] * 1.02], 1)
        return y.double().float() + 1e-7 if self.way == "rounding" else y


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def make() -> nn.Module:
        torch.manual_seed(0)
        net = Wrapped()
        net.way = "as it was"  # the weights are the same whatever the forward
        fitted(net, "linear")
        del net.way
        return net

    monkeypatch.setitem(models.MODELS, "mine", make)
    data = {"kind": "digits"}
    content = {
        "workload": {"model": "mine", "data": data, "calibration_samples": 64, "batch_size": 64},
        "database": {"path": str(tmp_path / "database"), "levels": ["dense", "unstr-0.50"]},
        "budgets": {"flops": 0.6},
    }
    return parse_model_job(content, tmp_path / "job.yaml")


@pytest.mark.parametrize("way", ["input", "outputs", "one output"])
def test_a_database_is_not_that_of_another_forward(
    job: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    before = build(job)[0].model
    monkeypatch.setattr(Wrapped, "way", way)
    with pytest.raises(DatabaseMismatchError, match="same weights and another forward"):
        build(job)
    assert model_fingerprint(before) == model_fingerprint(models.build_model("mine"))


def test_a_run_store_does_not_answer_for_another_forward(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled outputs leave every Hessian, and so every compressed weight, as it was."""
    with prepare(job) as problem:
        first, weights = problem.key, problem.database.fingerprint
    shutil.rmtree(job.database.path)
    monkeypatch.setattr(Wrapped, "way", "outputs")
    with prepare(job) as problem:
        assert problem.key != first
        assert problem.database.fingerprint != weights


def test_rounding_is_no_other_forward(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with prepare(job) as problem:
        first = problem.key
    monkeypatch.setattr(Wrapped, "way", "rounding")
    with prepare(job) as problem:
        assert problem.key == first


def test_other_kernels_and_thread_counts_are_no_other_forward(job: Any) -> None:
    """What another processor does is as this one without oneDNN, and with sums in double."""
    workload, _ = build(job)
    inputs = workload.calibration.batch[0][:8]
    found = [model_outputs(workload.model, inputs)]
    torch.set_num_threads(2)
    found.append(model_outputs(workload.model, inputs))
    torch.set_num_threads(1)
    assert found[0] == found[1]  # to the bit, for any number of workers
    with torch.backends.mkldnn.flags(enabled=False):
        found.append(model_outputs(workload.model, inputs))
    found.append(model_outputs(workload.model.double(), inputs.double()))
    for other in found[2:]:
        largest = max(map(abs, found[0]))
        assert max(abs(a - b) for a, b in zip(found[0], other, strict=True)) < 1e-5 * largest


def test_a_build_that_another_processor_began_goes_on(job: Any) -> None:
    build(job)
    path = job.database.path
    begun = json.loads((path / "build.json").read_text())
    begun["outputs"] = [value * (1 + 2e-6) for value in begun["outputs"]]
    shutil.rmtree(path)
    path.mkdir()
    (path / "build.json").write_text(json.dumps(begun))
    manifest = json.loads((build(job)[1].path / "manifest.json").read_text())
    assert manifest["outputs"] == begun["outputs"]


@pytest.mark.parametrize("broken", ["text", [1, "2"], {"a": 1}, [None]])
def test_outputs_that_are_none(job: Any, broken: Any) -> None:
    build(job)
    file = job.database.path / "build.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "outputs": broken}))
    with pytest.raises(DatabaseError, match="`outputs` is no list of numbers"):
        build(job)


@pytest.fixture
def old(tmp_path: Path) -> Any:
    shutil.copytree(V0_1_0, tmp_path / "old")
    from apportion.search.jobs.job_file import load_job

    return load_job(tmp_path / "old" / "job.yaml")


def test_a_database_of_version_0_1_0_opens_with_a_warning(
    old: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before = {p: p.read_bytes() for p in old.database.path.rglob("*") if p.is_file()}
    with caplog.at_level(logging.WARNING), prepare(old) as problem:
        assert problem.id == "feee5b8b"
        assert problem.database.fingerprint.startswith("5ff25734")
    assert "recorded no outputs of the model" in caplog.text
    assert {p: p.read_bytes() for p in old.database.path.rglob("*") if p.is_file()} == before


def test_runs_of_version_0_1_0_go_on(old: Any) -> None:
    store = RunStore(f"sqlite:///{old.database.path.parent / 'store.db'}")
    stored = {run.id: store.trials(run.id) for run in store.runs("feee5b8b")}
    with prepare(old) as problem:
        results = run_search(problem, store)
    assert [result.run.state for result in results] == ["finished", "finished"]
    for result in results:
        known = stored[result.run.id]
        assert [t.candidate for t in result.trials[: len(known)]] == [t.candidate for t in known]


def test_a_forward_corrected_beside_an_old_database_is_said_to_be_unchecked(
    old: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    check: Callable[..., Any] = building.model_outputs
    monkeypatch.setattr(
        building, "model_outputs", lambda *arguments: [2 * x for x in check(*arguments)]
    )
    with caplog.at_level(logging.WARNING):
        found: LayerDatabase = build(old)[1]
    assert found.fingerprint.startswith("5ff25734")
    assert "cannot be checked" in caplog.text
