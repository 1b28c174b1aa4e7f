"""Search without a model, on latency tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from apportion.compressors.errors import DataError, InfeasibleBudgetError, JobError
from apportion.db.layers.database import LayerDatabase
from apportion.db.runs.store import RunStore
from apportion.search.algorithms.registry import names
from apportion.search.jobs.job import TableJob
from apportion.search.jobs.job_file import load_job, load_model_job, restore_job
from apportion.search.runs.pipeline import prepare, run_search
from apportion.search.runs.table_problem import prepare_table
from apportion.search.space.additive import optimum, solve
from apportion.search.space.milp import milp


def table(folder: Path, layers: int = 6, levels: int = 5) -> Path:
    """A table of its own: projects that stand alone have no published ones."""
    rng = np.random.default_rng(0)
    dense = rng.uniform(0.1, 1.0, layers)
    lines = ["base", f"{dense.sum() + 0.2:.6f}", "prunable", f"{dense.sum():.6f}"]
    for k, time in enumerate(dense):
        lines.append(f"layer{k}")
        lines += [
            f"{time * (1 - 0.9 * i / levels):.6f} {0.95 * i / levels:.4f}" for i in range(levels)
        ]
    path = folder / "table.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def job(folder: Path, path: Path | None = None, **changes: Any) -> TableJob:
    content = {"budgets": {"speedup": "2x"}, **changes}
    if "workload" not in content:
        content["workload"] = {"table": str(path or table(folder))}
    found = folder / "job.yaml"
    found.write_text(yaml.safe_dump(content))
    loaded = load_job(found)
    assert isinstance(loaded, TableJob)
    return loaded


@pytest.mark.parametrize(
    ("file", "speedup", "best"),
    [
        ("rn50_unstr", "2x", 3.24033),
        ("rn50_unstr", "3x", 11.58477),
        ("rn18_unstr", "2x", 1.72933),
        ("rn18_unstr", "3x", 4.79536),
    ],
)
def test_the_published_optima(
    shared_data: Path, tmp_path: Path, file: str, speedup: str, best: float
) -> None:
    space = prepare_table(
        job(tmp_path, shared_data / "timings" / f"{file}.txt", budgets={"speedup": speedup})
    ).space
    proven = milp(space)
    assert proven.error == pytest.approx(best, abs=1e-5)
    assert proven.bound == pytest.approx(best, abs=1e-5)
    programmed = solve(space)
    assert space.feasible(programmed)
    assert best - 1e-5 <= space.error(programmed) <= 1.001 * best


def test_every_algorithm_searches_a_table(tmp_path: Path) -> None:
    algorithms = [name for name in names() if name != "race"]
    own = job(tmp_path, search={"algorithms": algorithms, "evaluations": 30, "seeds": [0]})
    with prepare(own) as problem:
        results = run_search(problem, RunStore(str(own.store)))
        best = problem.space.error(optimum(problem.space))
    assert [result.run.algorithm for result in results] == algorithms
    assert all(
        result.best.fitness == pytest.approx(best) and result.pick == result.best
        for result in results
    )
    assert restore_job(RunStore(str(own.store)).job(problem.id)) == own


def test_params_come_from_a_model(shared_data: Path, tmp_path: Path) -> None:
    workload = {
        "table": str(shared_data / "timings" / "rn18_unstr.txt"),
        "model": "torchvision:resnet18",
    }
    problem = prepare_table(
        job(tmp_path, workload=workload, budgets={"speedup": "2x", "params": 0.3})
    )
    assert problem.space.dense["params"] == 11_689_512
    ratios = problem.ratios(optimum(problem.space))
    assert ratios["latency"] <= 0.5
    assert ratios["params"] <= 0.3


def test_errors_from_a_file(tmp_path: Path) -> None:
    path = table(tmp_path, layers=2, levels=5)
    rows = [
        f"layer{k},unstr-{s},{e}"
        for k in (0, 1)
        for s, e in ((0.19, 1), (0.38, 5), (0.57, 6), (0.76, 9))
    ]
    (tmp_path / "errors.csv").write_text("layer,level,error\n" + "\n".join(rows))
    problem = prepare_table(
        job(tmp_path, workload={"table": str(path), "error": "errors.csv"}, budgets={})
    )
    assert [row.tolist() for row in problem.space.errors] == 2 * [[0, 1, 5, 6, 9]]
    (tmp_path / "errors.csv").write_text("layer,level,error\n" + "\n".join(rows[1:]))
    with pytest.raises(DataError, match="no error of layer 'layer0' at level unstr-0.19"):
        prepare_table(job(tmp_path, workload={"table": str(path), "error": "errors.csv"}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer,level,error\nlayer0,unstr-0.19,1\nlayer0,unstr-0.190,2", "line 3: .* stands twice"),
        ("layer;level;error\nlayer0;unstr-0.19;0,5", r"line 2: .*\(write 0.5, with a point\)"),
        ("layer,level,error\nlayer0,unstr-0.19,nan", "line 2: a number is needed"),
        ("layer,level,error\nlayer0,wat,1", "line 2: level 'wat'"),
        ("layer,level\nlayer0,dense", ".*'error' is missing"),
        ("layer,level,error\nlayer0,dense", "line 2: 2 values for 3 columns"),
        ("", "expected the columns layer, level, error"),
    ],
)
def test_errors_from_a_file_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    path = table(tmp_path, layers=1, levels=2)
    (tmp_path / "errors.csv").write_text(text)
    with pytest.raises(DataError, match=f"errors.csv: {message}"):
        prepare_table(job(tmp_path, workload={"table": str(path), "error": "errors.csv"}))


def test_what_a_table_cannot_be_held_to(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="budgets.flops: a table job has latency"):
        prepare(job(tmp_path, budgets={"flops": 0.5}))
    with pytest.raises(InfeasibleBudgetError, match="layer 'layer"):
        prepare(job(tmp_path, budgets={"speedup": "50x"}))
    with pytest.raises(DataError, match="which torchvision:resnet18 lacks"):
        prepare(
            job(tmp_path, workload={"table": str(table(tmp_path)), "model": "torchvision:resnet18"})
        )
    with pytest.raises(JobError, match="a model is needed here"):
        load_model_job(tmp_path / "job.yaml")


def test_a_model_is_held_to_a_latency_table(
    job_file: Callable[..., Path], tmp_path: Path, database: LayerDatabase
) -> None:
    rows = ["layer,level,seconds", "*,dense,1.5"]
    for k, layer in enumerate(database.layers):
        rows += [
            f"{layer},dense,0.1",
            f"{layer},unstr-0.90,{0.02 + 0.001 * k}",
            f"{layer},unstr-0.95,0.03",
        ]
    (tmp_path / "times.csv").write_text("\n".join(rows))
    own = load_model_job(
        job_file(latency={"table": "times.csv"}, budgets={"speedup": "2x", "bits": "40KiB"})
    )
    with prepare(own) as problem:
        (result,) = run_search(problem, RunStore(str(own.store)))[:1]
    assert all(problem.ratios(t.candidate)["latency"] <= 0.5 + 1e-9 for t in result.trials)
    assert all(problem.full_space.total("bits", t.candidate) <= 40 * 8192 for t in result.trials)
    conv1 = problem.full_space.costs["latency"][0]
    assert (np.diff(conv1) <= 1e-12).all()  # the slower 0.95 was noise
    raw = load_model_job(
        job_file(latency={"table": "times.csv", "clean": False}, budgets={"latency": "0.75s"})
    )
    with prepare(raw) as problem:
        assert problem.full_space.costs["latency"][0].tolist()[-1] == 0.03
    with pytest.raises(InfeasibleBudgetError, match="latency"):
        prepare(
            load_model_job(job_file(latency={"table": "times.csv"}, budgets={"latency": "10ms"}))
        )
