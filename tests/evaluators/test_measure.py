"""ONNX models in ONNX Runtime, and times measured on this machine."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from apportion.compressors.calibration import over
from apportion.compressors.errors import ConfigurationError, UnknownNameError
from apportion.compressors.grids import GridOptions
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.levels import DENSE, parse_level
from apportion.compressors.options import CompressionOptions
from apportion.db.layers.build import build_database
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.costs import measure
from apportion.evaluators.costs.latency_files import read_latency
from apportion.evaluators.costs.measure import check_latency, measure_latency, sample_profiles
from apportion.evaluators.costs.runtimes import (
    OnnxRuntime,
    Runtime,
    Timing,
    TorchRuntime,
    open_runtime,
)
from apportion.evaluators.workloads.workload import Workload
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.building import build

pytest.importorskip("onnxruntime", reason="apportion[onnx] is not installed")
pytest.importorskip("onnxscript", reason="apportion[onnx] is not installed")
from apportion.evaluators.rewriting import onnx_model
from apportion.evaluators.rewriting.onnx_model import Quantized

LEVELS = ["dense", "unstr-0.50", "rtn:w4", "rtn:w8a8", "unstr-0.50+rtn:w4a4"]


@pytest.fixture(scope="module")
def job_content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "workload": {"data": {"kind": "digits"}, "calibration_samples": 256, "batch_size": 64},
        "database": {
            "path": str(tmp_path_factory.mktemp("quantized") / "digits"),
            "levels": LEVELS,
            "grid": {"symmetric": True},
        },
        "budgets": {"flops": 1.0},
    }


@pytest.fixture(scope="module")
def quantized(
    job_content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workload, LayerDatabase]:
    return build(parse_model_job(job_content, tmp_path_factory.mktemp("jobs") / "job.yaml"))


@pytest.mark.parametrize("mixed", [["dense"], ["rtn:w4"], ["rtn:w8a8"], LEVELS])
def test_onnx_runtime_gives_what_torch_gives(
    quantized: tuple[Workload, LayerDatabase], mixed: list[str]
) -> None:
    workload, database = quantized
    profile = {name: parse_level(mixed[i % len(mixed)]) for i, name in enumerate(database.levels())}
    model = copy.deepcopy(workload.model)
    database.stitch(model, profile)
    what = {
        n: Quantized(database.grid(n, lv), database.entry(n, lv).activation)
        for n, lv in profile.items()
        if not lv.is_dense
    }
    inputs = workload.calibration.batch[0][:64]
    proto = onnx_model.to_onnx(model, inputs[:2], what)
    ours = onnx_model.run(onnx_model.session(proto, 1), inputs)
    with torch.no_grad():
        theirs = model(inputs)
    assert float((ours.argmax(1) == theirs.argmax(1)).float().mean()) > 0.98
    steps = sum(
        lv.activation_bits is not None for lv in profile.values()
    )  # a code may flip where rounding differs
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < (0.15 if steps else 1e-5)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("QuantizeLinear") == steps
    assert kinds.count("DequantizeLinear") == steps + sum(
        q.weight is not None for q in what.values()
    )
    assert (
        b".py" not in proto.SerializeToString()
    )  # no stack traces, which would name this machine's paths


def test_measured_times_make_a_table(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)).eval()
    example = torch.randn(4, 64)
    grids = CompressionOptions(grid=GridOptions(symmetric=True))
    levels = [parse_level(text) for text in LEVELS]
    data = over(torch.randn(64, 64))
    database = build_database(
        tmp_path / "db",
        model,
        find_layers(model, data),
        data,
        levels,
        model_fingerprint="m",
        calibration_fingerprint="c",
        options=grids,
    )
    steps: list[tuple[str, int, int]] = []
    measured = measure_latency(
        model, database, example, OnnxRuntime(1), lambda *step: steps.append(step)
    )
    assert steps[-1][1] == steps[-1][2]
    fast = {parse_level("rtn:w8a8"), parse_level("unstr-0.50+rtn:w4a4")}
    assert set(measured.idle) == {parse_level("unstr-0.50"), parse_level("rtn:w4")}
    assert all(set(row) == {DENSE, *fast} for row in measured.layers.values())
    assert all(
        t.seconds > 0 and t.spread >= 0 and t.repeats >= 50
        for row in measured.layers.values()
        for t in row.values()
    )
    (tmp_path / "times.csv").write_text(measured.to_csv())
    table = read_latency(tmp_path / "times.csv")
    first = next(iter(database.layers))
    times = table.of(first, [DENSE, parse_level("rtn:w8a8"), parse_level("rtn:w4")])
    assert times[1] == pytest.approx(
        measured.layers[first][parse_level("rtn:w8a8")].seconds, rel=1e-6
    )
    assert times[2] == times[0]  # what nothing accelerates costs what dense costs
    assert table.whole >= measured.whole.seconds * (1 - 1e-6)

    profiles = sample_profiles(database, sorted(fast, key=str), 3, np.random.default_rng(0))
    assert all(level.is_dense for level in profiles[0].values())
    assert not any(level.is_dense for level in profiles[-1].values())
    checks = check_latency(model, database, table, example, OnnxRuntime(1), profiles)
    assert checks[0].predicted == pytest.approx(table.whole)
    assert all(c.measured > 0 and sum(c.levels.values()) == 2 for c in checks)


def test_layers_of_one_shape_are_timed_once(quantized: tuple[Workload, LayerDatabase]) -> None:
    workload, database = quantized
    measured = measure_latency(
        workload.model, database, workload.calibration.batch[0][:1], TorchRuntime(1)
    )
    assert all(
        set(row) == {DENSE} for row in measured.layers.values()
    )  # torch on the CPU accelerates nothing
    assert len({id(row[DENSE]) for row in measured.layers.values()}) < 14
    assert set(measured.idle) == {parse_level(text) for text in LEVELS[1:]}


def test_filter_levels_do_not_hide_what_runs_in_integers(
    quantized: tuple[Workload, LayerDatabase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "time_run", run_once)  # how long it takes says nothing here
    workload, _ = quantized
    example, facts = workload.calibration.batch[0][:2], []
    for levels in (["dense", "rtn:w8a8"], ["dense", "rtn:w8a8", "filter-0.50"]):
        job = {
            "workload": {"data": {"kind": "digits"}, "calibration_samples": 64},
            "database": {
                "path": str(tmp_path / str(len(levels))),
                "levels": levels,
                "grid": {"symmetric": True},
            },
            "budgets": {"flops": 1.0},
        }
        _, database = build(parse_model_job(job, tmp_path / "job.yaml"))
        facts.append(
            measure_latency(workload.model, database, example, OnnxRuntime(1)).facts["in integers"]
        )
    assert facts[0] == facts[1] != "none"


def run_once(run: Callable[[], object]) -> Timing:
    run()
    return Timing(1.0, 0.0, 1)


@pytest.mark.parametrize("runtime", [TorchRuntime(1), OnnxRuntime(1)])
def test_filter_levels_run_in_the_shapes_that_are_left(tmp_path: Path, runtime: Runtime) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten()
    )
    model.append(nn.Linear(16 * 36, 4)).eval()
    example = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    levels = [parse_level(text) for text in ("dense", "filter-0.75", "filter-0.75+rtn:w4")]
    database = build_database(
        tmp_path / "wide",
        model,
        find_layers(model, over(example)),
        over(example),
        levels,
        model_fingerprint="m",
        calibration_fingerprint="c",
        exceptions={"5": [DENSE]},
    )
    measured = measure_latency(model, database, example, runtime)
    assert measured.idle == (levels[2],)
    assert {name: list(row) for name, row in measured.layers.items()} == {
        "0": levels[:2],
        "2": levels[:2],
        "5": [DENSE],
    }
    (tmp_path / "t.csv").write_text(measured.to_csv())
    asked: list[list[str]] = []

    class Watched:
        """The runtime, and which layers it is to run in smaller shapes."""

        def __getattr__(self, name: str) -> Any:
            return getattr(runtime, name)

        def prepare(
            self, model: Any, inputs: Any, quantized: Any, reduced: list[str], chained: bool
        ) -> Any:
            asked.append(reduced)
            return runtime.prepare(model, inputs, quantized, reduced, chained)

    profile = {"0": DENSE, "2": levels[1], "5": DENSE}
    (check,) = check_latency(
        model,
        database,
        read_latency(tmp_path / "t.csv"),
        example,
        cast(Runtime, Watched()),
        [profile],
    )
    assert check.measured > 0
    assert asked == [["2"]]


def test_runtimes_are_named() -> None:
    assert open_runtime("torch", 1).name.startswith("torch ")
    with pytest.raises(UnknownNameError, match="onnxruntime"):
        open_runtime("onnxruntim", 1)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="no CUDA device"):
            open_runtime("cuda", 1)


def test_measure_and_check_on_the_command_line(
    job_content: dict[str, Any], quantized: tuple[Workload, LayerDatabase], tmp_path: Path
) -> None:
    assert quantized  # the database that the job names is there
    job, times = tmp_path / "job.yaml", tmp_path / "times.csv"
    job.write_text(yaml.safe_dump(job_content))

    def apportion(*words: object) -> Any:
        command = [sys.executable, "-m", "apportion", *map(str, words), "--json"]
        return json.loads(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
        )

    found = apportion("latency", "measure", job, "-o", times)
    assert found["not accelerated"] == "rtn:w4 rtn:w8a8 unstr-0.50 unstr-0.50+rtn:w4a4"
    checked = apportion("latency", "check", job, "--table", times, "--profiles", 3)
    assert len(checked["profiles"]) == 3
    assert checked["rank_correlation"] is None  # torch on the CPU accelerates none of these levels
    rises = apportion("sensitivity", job, "-o", tmp_path / "s.csv")
    assert rises["conv1"]["dense"] == 0
    assert (tmp_path / "s.csv").read_text().startswith("layer,level,error\nconv1,dense,0.0\n")
