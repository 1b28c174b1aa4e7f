"""netadapt: the best proposal by metric is kept until the budgets hold, wherever it was stopped and
whoever trained the proposals."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.compressors.errors import ApportionError
from apportion.compressors.kinds.find import find_layers
from apportion.evaluators.tasks.metric import Metric
from apportion.evaluators.training.proposals import Judged
from apportion.evaluators.workloads.workload import load_workload, model_fingerprint
from apportion.search.jobs.job import Job
from apportion.search.schedules.candidates import Candidates, costs_of
from apportion.search.schedules.netadapt import _rank
from apportion.search.schedules.prune import prune
from tests.search.test_schedules import CHANNELS, Stopped, job, loaded, stopping

CONTENT = {
    **CHANNELS,
    "budgets": {"flops": 0.7, "params": 0.9},
    "database": {**CHANNELS["database"], "channels": {"multiple": 2}},  # type: ignore[dict-item]
    "schedule": {"kind": "netadapt", "step": 0.15, "short": 2},
}


def test_the_best_proposal_is_kept_until_the_budgets_hold(tmp_path: Path) -> None:
    made = prune(job(tmp_path, CONTENT), tmp_path / "out")
    *iterations, last = made.content["steps"]
    dense = made.content["dense"]
    before = dense
    for step in iterations:
        for metric, bound in step["budgets"].items():
            final = {"flops": 0.7, "params": 0.9}[metric] * dense[metric]
            assert bound == pytest.approx(max(final, before[metric] - 0.15 * dense[metric]))
            assert step["costs"][metric] <= bound
        assert len(step["proposals"]) > 1
        best = max(p["accuracy"] for p in step["proposals"])
        assert step["accuracy"]["proposal"] == best
        (kept,) = (p for p in step["proposals"] if p["group"] == step["group"])
        assert kept["accuracy"] == best
        for metric, cost in step["costs"].items():
            assert kept["costs"][metric] == cost
        assert step["measured_on"] == "selection"
        before = step["costs"]
    assert last["of_dense"]["flops"] <= 0.7
    assert last["of_dense"]["params"] <= 0.9
    assert last["measured_on"] == "test"
    workload = load_workload(job(tmp_path, CONTENT).workload)
    model = loaded(tmp_path / "out")
    real = costs_of(model, find_layers(model, workload.traced_pass()))
    assert {m: real[m] for m in last["costs"]} == last["costs"]
    assert not list((tmp_path / "out").rglob("*.pt"))


def test_proposals_are_the_largest_sizes_that_meet_the_bounds(tmp_path: Path) -> None:
    own = job(tmp_path, CONTENT)
    workload = load_workload(own.workload)
    candidates = Candidates(own, workload)
    costs = costs_of(workload.model, find_layers(workload.model, workload.traced_pass()))
    bounds = {"flops": 0.9 * costs["flops"]}
    proposals = candidates.proposals(bounds)
    assert len(proposals) > 1
    for proposal in proposals:
        small = candidates.model(proposal)
        real = costs_of(small, find_layers(small, workload.traced_pass()))
        assert real == proposal.costs
        assert real["flops"] <= bounds["flops"]
        group = next(g for g in candidates._grouped.groups if g.name == proposal.group)
        if larger := [size for size in candidates._sizes(group) if size > proposal.size]:
            assert candidates._proposal(group, larger[-1]).costs["flops"] > bounds["flops"]
    least = candidates.proposals({"flops": 1.0})  # no group alone can
    assert all(proposal.costs["flops"] > 1 for proposal in least)


def test_stopped_anywhere_it_goes_on_to_the_same_model(tmp_path: Path) -> None:
    own = job(tmp_path, CONTENT)
    made = prune(own, tmp_path / "whole")
    for count, what in ((2, "netadapt"), (3, "netadapt"), (1, "finetune"), (2, "test")):
        with pytest.raises(Stopped):
            prune(own, tmp_path / "parts", stopping(count, what))
    again = prune(own, tmp_path / "parts")
    assert again.content == made.content
    found = {model_fingerprint(loaded(tmp_path / name)) for name in ("whole", "parts")}
    assert len(found) == 1
    shutil.rmtree(tmp_path / "parts" / "step-1")  # a lost step is made again, and what follows
    prune(own, tmp_path / "parts")
    assert {model_fingerprint(loaded(tmp_path / "parts"))} == found


def test_kept_proposals_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apportion.evaluators.training.proposals import Course

    trained = 0
    whole = Course.judged

    def counting(self: Course, model: torch.nn.Module) -> Judged:
        nonlocal trained
        trained += 1
        return whole(self, model)

    monkeypatch.setattr(Course, "judged", counting)
    own = job(tmp_path, CONTENT)
    with pytest.raises(Stopped):
        prune(own, tmp_path / "out", stopping(3, "netadapt"))
    assert trained == 2  # the first call tells of none
    made = prune(own, tmp_path / "out")
    assert trained == sum(len(step.get("proposals", ())) for step in made.content["steps"])


def test_the_best_proposal_by_the_metrics_direction() -> None:
    higher, lower = (Metric("gain", "", up, 0.1) for up in (True, False))
    values = [(0.5, 2.0), (math.nan, 0.0), (0.7, 2.0), (0.7, 1.0), (0.2, math.nan)]
    judged = [Judged(metric, loss, {}) for metric, loss in values]
    assert min(judged, key=lambda own: _rank(own, higher)) is judged[3]
    assert min(judged, key=lambda own: _rank(own, lower)) is judged[4]


def test_budgets_out_of_reach_are_told(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        **CONTENT,
        "budgets": {"flops": 0.01},
        "schedule": {"kind": "netadapt", "step": 0.9, "short": 0},
    }
    content["database"] = {**CHANNELS["database"], "channels": {"multiple": 16}}  # type: ignore[dict-item]
    with pytest.raises(ApportionError, match="every channel group has its least size"):
        prune(job(tmp_path, content), tmp_path / "out")


def test_other_formats_are_a_job_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(ApportionError, match="netadapt writes safetensors alone"):
        prune(job(tmp_path, CONTENT), tmp_path / "out", formats=["onnx"])


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path) -> None:
    def fingerprint(own: Job, name: str) -> tuple[str, Any]:
        made = prune(own, tmp_path / name)
        assert json.loads((tmp_path / name / "schedule.json").read_text()) == made.content
        return model_fingerprint(loaded(tmp_path / name)), made.content

    here = fingerprint(job(tmp_path, CONTENT), "here")
    two = job(tmp_path, CONTENT, workers={"count": 2, "cpus": 1})
    assert fingerprint(two, "two") == here
