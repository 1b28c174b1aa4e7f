"""The command line as a user meets it: real processes, real Ray, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from apportion.db.runs.store import RunStore
from apportion.evaluators.models.build import build_model
from apportion.evaluators.workloads.evaluate import evaluate
from apportion.evaluators.workloads.workload import Workload
from apportion.search.cli.main import main

COMMAND = [sys.executable, "-m", "apportion"]


def apportion(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def league(job: Path) -> dict[str, Any]:
    done = apportion("search", job, "--json")
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def trials(job: Path) -> dict[str, list[tuple[tuple[int, ...], float]]]:
    store = RunStore(f"sqlite:///{job.parent / 'apportion.sqlite'}")
    return {
        run.id: [(t.candidate, t.fitness) for t in store.trials(run.id)] for run in store.runs()
    }


def test_the_whole_way(job_file: Callable[..., Path], tmp_path: Path, digits: Workload) -> None:
    job = job_file()
    built = json.loads(apportion("build", job, "--json").stdout)
    assert built["layers"] == 14
    content = league(job)
    assert {row["algorithm"] for row in content["league"]} == {"spdy", "dp", "ga", "random"}
    assert all(row["budgets_met"] for row in content["league"])
    best = min(row["best"] for row in content["league"])
    assert best <= min(content["starting_points"].values())
    run = next(row["run"] for row in content["league"] if row["best"] == best)
    store = content["store"]

    listed = json.loads(apportion("runs", "--store", store, "--json").stdout)
    assert {row["state"] for row in listed} == {"finished"}
    assert run in apportion("runs", "--store", store).stdout

    shown = json.loads(apportion("show", run, "--store", store, "--json").stdout)
    assert shown["best_fitness"] == best
    compared = json.loads(apportion("compare", "--store", store, "--json").stdout)
    assert {row["algorithm"] for row in compared["standings"]} == {"spdy", "dp", "ga", "random"}
    assert len(compared["comparison"]["pairwise"]) == 6
    assert "mean ranks over seeds [0]" in apportion("compare", "--store", store).stdout
    more = league(job_file(search={"algorithms": ["random"], "evaluations": 21, "seeds": [0]}))[
        "league"
    ][0]["run"]
    refused = apportion("compare", run, more, "--store", store)
    assert "only runs of one job with equal evaluations can be compared" in refused.stderr
    assert shown["costs"]["flops"] <= 0.25
    assert "flops" in apportion("show", run, "--store", store).stdout

    out = tmp_path / "out"
    exported = json.loads(apportion("export", run, "-o", out, "--store", store, "--json").stdout)
    assert sorted(p.name for p in out.iterdir()) == [
        "model.safetensors",
        "model_card.md",
        "profile.json",
        "profile.txt",
    ]
    profile = json.loads((out / "profile.json").read_text())
    assert profile["profile"] == shown["profile"]
    assert profile["provenance"]["run"] == run
    assert len((out / "profile.txt").read_text().splitlines()) == 14
    model = build_model("digits_resnet", str(out / "model.safetensors"))
    retuned = evaluate(digits, model)
    assert retuned == pytest.approx(exported["accuracy"]["retuned"], abs=1e-9)
    state = load_file(out / "model.safetensors")
    for name, level in profile["profile"].items():
        removed = float((state[f"{name}.weight"] == 0).float().mean())
        assert removed >= (0 if level == "dense" else float(level.removeprefix("unstr-"))) - 1e-6

    text = apportion(
        "import", out / "profile.txt", job, "-o", tmp_path / "again", "--format", "compressed"
    )
    assert text.returncode == 0, text.stderr
    assert f"{profile['fitness']['name']}: {profile['fitness']['value']:.5g}" in text.stdout
    again = json.loads((tmp_path / "again" / "profile.json").read_text())
    assert (again["profile"], again["accuracy"]) == (profile["profile"], profile["accuracy"])
    assert again["provenance"]["imported"] == "profile.txt"
    (out / "profile.txt").write_text("0.1234 conv1\n")
    refused = apportion("import", out / "profile.txt", job, "-o", tmp_path / "never")
    assert "layer 'conv1' has no level of sparsity 0.1234" in refused.stderr
    assert not (tmp_path / "never").exists()


def test_kinds_exceptions_ties_and_corrections_together(
    job_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Everything that a job can say of its layers, once through the whole house."""
    job = job_file(
        database={
            "path": str(tmp_path / "database"),
            "levels": ["dense", "2:4", "w4", "2:4+w4a8"],
            "augment": {"rounds": 2, "crop": 1, "flip": False},
            "grid": {"symmetric": True},
        },
        budgets={"bits": 0.3},
        layers={
            "skip": ["conv1"],
            "last": "w8",
            "levels": {"layer3.*": ["dense", "w4", "block4-0.50+w4"]},
            "sparsity": {"layer2.0.conv2": [0.4, 1]},
            "tie": [["layer3.0.conv2", "layer3.1.conv1"]],
        },
        corrections={"score": ["bias"], "export": ["statistics", "batchnorm"]},
        search={"algorithms": ["ga"], "evaluations": 10, "seeds": [0]},
        workers={"count": 0, "cpus": 1},
    )
    built = apportion("build", job, "--json")
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)["tied"] == {}
    content = league(job)
    out = tmp_path / "out"
    run = content["league"][0]["run"]
    exported = json.loads(
        apportion("export", run, "-o", out, "--store", content["store"], "--json").stdout
    )
    assert list(exported["accuracy"]) == ["dense", "stitched", "statistics corrected", "retuned"]
    assert exported["accuracy"]["retuned"] > 90
    assert exported["costs"]["bits"] <= 0.3
    profile = exported["profile"]
    assert (profile["conv1"], profile["linear"]) == ("dense", "w8")
    assert profile["layer3.0.conv2"] == profile["layer3.1.conv1"]
    assert profile["layer2.0.conv2"] in ("2:4", "2:4+w4a8")
    assert {profile[name] for name in profile if name.startswith("layer3")} <= {
        "dense",
        "w4",
        "block4-0.50+w4",
    }
    assert set(exported["activations"]) == {
        name for name, level in profile.items() if "a8" in level
    }
    assert all(grid["bits"] == 8 for grid in exported["activations"].values())


def test_kill_9_and_the_same_command_again(job_file: Callable[..., Path], tmp_path: Path) -> None:
    search = {"algorithms": ["spdy", "ga"], "evaluations": 60, "seeds": [0, 1]}
    job = job_file(search=search)
    league(job)
    undisturbed = trials(job)
    (tmp_path / "again").mkdir()
    again = tmp_path / "again" / "job.yaml"
    again.write_text(job.read_text())
    for count in (3, 70, 130):
        process = subprocess.Popen(
            [*COMMAND, "search", str(again)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while sum(map(len, trials(again).values())) < count and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    league(again)
    assert trials(again) == undisturbed


def test_ctrl_c_keeps_what_is_there(job_file: Callable[..., Path]) -> None:
    job = job_file(search={"algorithms": ["random"], "evaluations": 5000, "seeds": [0]})
    process = subprocess.Popen(
        [*COMMAND, "search", str(job)],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT and hands that on: the test must not depend on how
        # it was started.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while sum(map(len, trials(job).values())) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = subprocess.run(
        [*COMMAND, "search", str(job)], capture_output=True, text=True, check=False, timeout=120
    )
    assert second.returncode == 1
    assert f"is being worked on by process {process.pid} on" in second.stderr
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert RunStore(f"sqlite:///{job.parent / 'apportion.sqlite'}").runs()[0].state == "cancelled"


@pytest.mark.slow
def test_two_ray_workers_find_what_one_process_finds(
    job_file: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="apportion[ray] is not installed")
    job = job_file(search={"algorithms": ["spdy", "random"], "evaluations": 12, "seeds": [0]})
    league(job)
    alone = trials(job)
    (tmp_path / "ray").mkdir()
    there = job_file(
        search={"algorithms": ["spdy", "random"], "evaluations": 12, "seeds": [0]},
        workers={"count": 2, "cpus": 1},
    ).rename(tmp_path / "ray" / "job.yaml")
    league(there)
    assert trials(there) == alone


def test_a_lower_precision_says_how_far_it_agrees(job_file: Callable[..., Path]) -> None:
    workers = {"count": 0, "cpus": 1, "precision": "bf16"}
    content = league(job_file(search={"algorithms": ["local"], "evaluations": 8}, workers=workers))
    assert 0.95 < content["precision_agrees"] <= 1
    assert content["workers_replaced"] == {}
    assert (
        league(job_file(search={"algorithms": ["local"], "evaluations": 8}))["precision_agrees"]
        is None
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"budgets": {"flops": 0.01}},
            "budget 'flops': cannot be met: 0.01 of the dense model is asked, the levels reach",
        ),
        ({"budgets": {"bits": 0.02, "flops": 0.5}}, "budget 'bits': cannot be met"),
        ({"search": {"algorithms": [{"ga": {"populaton": 3}}]}}, "did you mean 'population'"),
        (
            {"workload": {"data": {"kind": "digits"}, "calibration_samples": 9999}},
            "9999 samples are asked for",
        ),
        (
            {"workload": {"data": {"kind": "digits"}, "model": "digits_resnt"}},
            "did you mean 'digits_resnet'",
        ),
    ],
)
def test_bad_input_is_one_clear_line(
    job_file: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    job = job_file(**changes)
    assert main(["search", str(job)]) == 1
    errors = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("apportion:")
    ]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in errors[0]
    store = job.parent / "apportion.sqlite"
    assert not store.exists() or not any(
        map(len, trials(job).values())
    )  # an error before any evaluation


def test_an_unwritable_output_folder(
    job_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_file(search={"algorithms": ["dp"], "evaluations": 2, "seeds": [0]})
    run = league(job)["league"][0]["run"]
    store = f"sqlite:///{tmp_path / 'apportion.sqlite'}"
    (tmp_path / "file").write_text("here")
    assert main(["export", run, "-o", str(tmp_path / "file"), "--store", store]) == 1
    assert f"cannot write {tmp_path / 'file'}" in capsys.readouterr().err
    assert main(["export", run, "-o", str(tmp_path / "file" / "out"), "--store", store]) == 1
    assert (tmp_path / "file").read_text() == "here"


def test_unknown_runs_and_stores(
    job_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = league(job_file(search={"algorithms": ["dp"], "evaluations": 2, "seeds": [0]}))["league"][
        0
    ]["run"]
    assert main(["show", run[:-1], "--store", f"sqlite:///{tmp_path / 'apportion.sqlite'}"]) == 1
    assert f"unknown run '{run[:-1]}'; did you mean '{run}'" in capsys.readouterr().err
    assert main(["runs", "--store", f"sqlite:///{tmp_path / 'none.sqlite'}"]) == 1
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "none.sqlite").exists()


def test_every_help_text_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        [],
        ["build"],
        ["search"],
        ["runs"],
        ["compare"],
        ["show"],
        ["export"],
        ["schema"],
    ):
        with pytest.raises(SystemExit) as caught:
            main([*command, "--help"])
        assert caught.value.code == 0
        assert "example: apportion" in capsys.readouterr().out


def test_a_search_never_changes_the_workloads_model(digits: Workload) -> None:
    assert not digits.model.training
    assert all(torch.isfinite(p).all() for p in digits.model.parameters())
