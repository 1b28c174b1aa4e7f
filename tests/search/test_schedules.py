"""Whole jobs in steps: budgets fall as the schedule says, steps are chained, and go on anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_model

from apportion.compressors.errors import ApportionError, InfeasibleBudgetError, JobError
from apportion.evaluators.models.build import build_model, load_weights
from apportion.evaluators.workloads.evaluate import evaluate
from apportion.evaluators.workloads.workload import load_workload, model_fingerprint
from apportion.search.jobs.job import Job
from apportion.search.jobs.job_file import parse_job, parse_model_job
from apportion.search.runs.pipeline import prepare, run_search
from apportion.search.schedules.course import amounts, as_budget, left
from apportion.search.schedules.prune import prune
from apportion.search.schedules.regrowing import REGROWN

CHANNELS = {
    "workload": {"data": {"kind": "digits"}, "calibration_samples": 64, "batch_size": 64},
    "database": {
        "path": "channels",
        "levels": ["dense", "channels-0.25", "channels-0.50"],
        "channels": {"multiple": 4},
    },
    "budgets": {"flops": "2x", "params": "40K"},
    "search": {"algorithms": ["milp"], "evaluations": 1, "picks": 1},
    "recovery": {"finetune": {"epochs": 1}},
    "schedule": {"kind": "agp", "iterations": 2},
    "workers": {"count": 0, "cpus": 1},
}
MASKS = {
    **CHANNELS,
    "database": {"path": "masks", "levels": ["dense", "unstr-0.30", "unstr-0.50", "unstr-0.80"]},
    "budgets": {"params": 0.45},
    "schedule": {"kind": "linear", "iterations": 2},
}


def job(tmp_path: Path, content: dict[str, Any], **changes: Any) -> Job:
    return parse_model_job({**content, **changes}, tmp_path / "job.yaml")


def loaded(folder: Path) -> torch.nn.Module:
    """What the files of a folder say alone."""
    shapes = folder / "shapes.json"
    return build_model(
        "digits_resnet",
        str(folder / "model.safetensors"),
        shapes=str(shapes) if shapes.exists() else None,
    )


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_courses_end_at_the_budget_and_fall_as_published() -> None:
    for kind in ("one-shot", "agp", "linear", "lottery"):
        shares = [left(kind, 0.2, t, 5) for t in range(1, 6)]
        assert shares[-1] == pytest.approx(0.2)
        assert shares == sorted(shares, reverse=True)
    assert left("agp", 0.2, 1, 2) == pytest.approx(1 - 0.8 * (1 - 1 / 8))
    assert left("linear", 0.2, 1, 2) == pytest.approx(0.6)
    assert left("lottery", 0.25, 1, 2) == pytest.approx(0.5)


def test_amounts_are_of_the_dense_model_and_survive_being_written(tmp_path: Path) -> None:
    made = job(tmp_path, CHANNELS, budgets={"flops": "3x", "bits": "1MiB"})
    dense = {"flops": 1e6 / 7, "bits": 2.0**24}
    found = amounts("linear", made.bounds(), dense, 2, 2)
    assert found["bits"] == pytest.approx(2.0**23)
    for metric, amount in found.items():
        (again,) = job(tmp_path, CHANNELS, budgets={metric: as_budget(metric, amount)}).bounds()
        assert amount <= again.bound(dense[metric]) <= amount * (1 + 1e-11)


def test_groups_are_chosen_anew_in_steps_down_to_the_budgets(tmp_path: Path) -> None:
    made = prune(job(tmp_path, CHANNELS), tmp_path / "out", formats=["compressed"])
    first, last = made.content["steps"]
    dense = made.content["dense"]
    assert first["budgets"]["flops"] == pytest.approx(dense["flops"] * (1 - 0.5 * 7 / 8))
    assert last["budgets"] == pytest.approx({"flops": dense["flops"] / 2, "params": 40e3})
    for step in (first, last):
        assert all(step["costs"][m] <= bound for m, bound in step["budgets"].items())
    assert parameters(loaded(tmp_path / "out")) == last["costs"]["params"]
    assert parameters(loaded(tmp_path / "out" / "step-1")) == first["costs"]["params"]
    assert dense["params"] == parameters(build_model("digits_resnet"))
    workload = load_workload(job(tmp_path, CHANNELS).workload)
    accuracy = evaluate(workload, loaded(tmp_path / "out"))
    assert accuracy == pytest.approx(last["accuracy"]["fine-tuned"])
    assert set(made.files) >= {"model.safetensors", "shapes.json", "model.packed"}
    assert json.loads((tmp_path / "out" / "step-1" / "step.json").read_text()) == first


def test_a_finished_schedule_is_not_done_again_and_a_lost_step_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = prune(job(tmp_path, CHANNELS), out)
    before = model_fingerprint(loaded(out))
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert not (out / "step-2" / "database").exists()
    assert prune(job(tmp_path, CHANNELS), out).content == made.content
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    shutil.rmtree(out / "step-1")
    (out / "model.safetensors").unlink()
    prune(job(tmp_path, CHANNELS), out)
    assert model_fingerprint(loaded(out)) == before
    with pytest.raises(ApportionError, match="steps of another job"):
        prune(job(tmp_path, CHANNELS, budgets={"flops": "3x"}), out)


class Stopped(Exception):
    pass


def stopping(count: int, what: str) -> Callable[[str, int, int], None]:
    """A progress that stops at the `count`-th call of `what`."""
    seen = 0

    def progress(text: str, _done: int, _total: int) -> None:
        nonlocal seen
        seen += text.startswith(what)
        if seen == count:
            raise Stopped

    return progress


def test_stopped_anywhere_steps_go_on_to_the_same_model(tmp_path: Path) -> None:
    own = job(tmp_path, CHANNELS)
    made = prune(own, tmp_path / "whole")
    shutil.rmtree(tmp_path / "channels")
    (tmp_path / "apportion.sqlite").unlink()
    for count, what in ((2, "compress groups"), (1, "milp"), (3, "finetune"), (8, "test")):
        with pytest.raises(Stopped):
            prune(own, tmp_path / "parts", stopping(count, what))
    assert prune(own, tmp_path / "parts").content == made.content
    found = {model_fingerprint(loaded(tmp_path / name)) for name in ("whole", "parts")}
    assert len(found) == 1


def zeros(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value == 0 for name, value in state.items() if value.dim() > 1}


@pytest.mark.parametrize("regrow", [False, True])
def test_masks_are_chosen_anew_from_what_training_left(tmp_path: Path, regrow: bool) -> None:
    fast = {"finetune": {"epochs": 2, "learning_rate": 0.2, "teacher": 0.0}}
    schedule = {"kind": "linear", "iterations": 2, "regrow": regrow, "epochs": 2}
    content = {**MASKS, "schedule": schedule, "recovery": fast}
    out = tmp_path / "out"
    made = prune(job(tmp_path, content), out)
    assert made.content["steps"][-1]["of_dense"]["params"] <= 0.45
    final = zeros(load_file(out / "model.safetensors"))
    first = zeros(load_file(out / "step-1" / "model.safetensors"))
    gone = sum(int(mask.sum()) for mask in final.values())
    costs = made.content["steps"][-1]["costs"]["params"]
    assert made.content["dense"]["params"] - gone <= costs
    back = sum(int((mask & ~final[name]).sum()) for name, mask in first.items())
    assert (out / "step-1" / REGROWN).exists() == regrow
    if regrow:
        assert back > 0
        assert not any(m.any() for m in zeros(load_file(out / "step-1" / REGROWN)).values())
    else:
        kept = {n: m for n, m in first.items() if final[n].any()}  # others are dense now
        assert not any((mask & ~final[name]).any() for name, mask in kept.items())


def early(path: Path) -> Path:
    """Other weights, of a model that is no worse than trained for a while."""
    model = load_workload(job(path.parent, CHANNELS).workload).model
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for own in model.parameters():
            own.mul_(1 + 0.1 * torch.randn(own.shape, generator=generator))
    save_model(model, str(path))
    return path


def lottery(content: dict[str, Any], file: Path) -> dict[str, Any]:
    recovery = {"finetune": {"epochs": 1, "learning_rate": 1e-12}, "rewind": str(file)}
    return {**content, "recovery": recovery, "schedule": {"kind": "lottery", "iterations": 2}}


def test_lottery_sets_masked_weights_back(tmp_path: Path) -> None:
    file = early(tmp_path / "early.safetensors")
    out = tmp_path / "out"
    made = prune(job(tmp_path, lottery(MASKS, file)), out)
    assert made.content["steps"][0]["budgets"]["params"] == pytest.approx(
        made.content["dense"]["params"] * 0.45**0.5
    )
    given, left_ = load_file(file), load_file(out / "model.safetensors")
    changed = 0
    for name, value in left_.items():
        if name.endswith("weight"):  # hardly trained, so that they are what they were set to
            stays = value != 0
            torch.testing.assert_close(value[stays], given[name][stays])
            changed += int((~stays).sum())
    assert changed >= 0.5 * 0.45 * made.content["dense"]["params"]
    assert "rewound" in made.content["steps"][-1]["accuracy"]


def test_lottery_cuts_the_same_channels_out_of_the_early_weights(tmp_path: Path) -> None:
    file = early(tmp_path / "early.safetensors")
    out = tmp_path / "out"
    prune(job(tmp_path, lottery(CHANNELS, file)), out)
    given, small = load_file(file), dict(loaded(out).named_parameters())
    name = "layer1.0.conv1.weight"
    kernels = {tuple(kernel.flatten().tolist()) for row in given[name] for kernel in row}
    left_ = small[name].detach()
    assert left_.numel() < given[name].numel()
    # Each kernel that is left is one of the early model's, as it hardly was trained.
    nearest = torch.tensor(sorted(kernels))
    for kernel in left_.flatten(0, 1).flatten(1):
        assert float((nearest - kernel).abs().max(1).values.min()) < 1e-6
    fresh = loaded(out)
    load_weights(fresh, out / "rewind.safetensors")


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (MASKS, {"schedule": {"kind": "netadapt"}}, "database.levels needs channel levels"),
        (CHANNELS, {"schedule": {"kind": "lottery"}}, "recovery.rewind must name"),
        (
            CHANNELS,
            {"schedule": {"kind": "lottery"}, "recovery": {"rewind": "early.pt"}},
            "recovery.finetune must say how",
        ),
        (CHANNELS, {"schedule": {"kind": "agp", "iterations": 0}}, "greater than or equal to 1"),
        (CHANNELS, {"schedule": {"kind": "often"}}, "schedule.kind"),
        (CHANNELS, {"schedule": {"kind": "netadapt", "iterations": 3}}, "iterations: it is for"),
        (CHANNELS, {"schedule": {"kind": "agp", "decay": 0.9}}, "decay: it is for netadapt"),
        (CHANNELS, {"schedule": {"kind": "agp", "regrow": True}}, "schedule.regrow"),
        (CHANNELS, {"budgets": {}}, "the job has none"),
        (
            CHANNELS,
            {"budgets": {"bits": "2x"}, "schedule": {"kind": "netadapt"}},
            "flops and params, not bits",
        ),
        (
            CHANNELS,
            {
                "database": {"path": "d", "levels": ["dense", "channels-0.50+w8"]},
                "schedule": {"kind": "netadapt"},
            },
            "needs a job of its own",
        ),
        (
            MASKS,
            {
                "database": {"path": "d", "levels": ["dense", "w8"]},
                "recovery": {"rewind": "early.pt"},
            },
            "lie on no grid",
        ),
        (MASKS, {"workload": {**MASKS["workload"], "fold": True}}, "workload.fold makes"),  # type: ignore[dict-item]
    ],
)
def test_what_a_schedule_cannot_have_is_refused_by_name(
    tmp_path: Path, content: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError, match=message):
        job(tmp_path, content, **changes)


def test_tables_have_no_schedule(tmp_path: Path) -> None:
    content = {"workload": {"table": "t.txt"}, "schedule": {"kind": "agp"}}
    with pytest.raises(JobError, match="schedule"):
        parse_job(content, tmp_path / "job.yaml")


def test_early_weights_must_fit_the_dense_model(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "other.pt")
    content = lottery(CHANNELS, tmp_path / "other.pt")
    with pytest.raises(ApportionError, match=r"other\.pt"):
        prune(job(tmp_path, content), tmp_path / "out")
    with pytest.raises(ApportionError, match=r"none\.pt: no such file"):
        prune(job(tmp_path, lottery(CHANNELS, tmp_path / "none.pt")), tmp_path / "out")


def test_a_step_that_asks_too_much_is_named_in_shares_of_the_dense_model(tmp_path: Path) -> None:
    content = {**CHANNELS, "budgets": {"flops": "10x"}}
    content["schedule"] = {"kind": "linear", "iterations": 2}
    content["database"] = {**CHANNELS["database"], "levels": ["dense", "channels-0.50"]}  # type: ignore[dict-item]
    with pytest.raises(ApportionError, match=r"step 2 of 2 asks 0\.100 of the dense") as caught:
        prune(job(tmp_path, content), tmp_path / "out")
    step = json.loads((tmp_path / "out" / "step-1" / "step.json").read_text())
    assert isinstance(caught.value, InfeasibleBudgetError)
    assert 0.1 < caught.value.least < step["of_dense"]["flops"]


def test_a_search_alone_does_not_pass_for_a_schedule(tmp_path: Path) -> None:
    from apportion.db.runs.store import RunStore

    with (
        prepare(job(tmp_path, CHANNELS)) as problem,
        pytest.raises(ApportionError, match="`apportion prune` runs it"),
    ):
        run_search(problem, RunStore(f"sqlite:///{tmp_path / 'runs.sqlite'}"))
