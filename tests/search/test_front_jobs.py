"""A front on a network, from the command line: search, runs, show, export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from apportion.compressors.progress import silent
from apportion.db.runs.store import RunStore
from apportion.search.cli.main import main
from apportion.search.jobs.job_file import load_model_job
from apportion.search.runs.front import prepare_points, run_points
from apportion.search.service.head.results import write_results

POINTS = ["flops 8x", "flops 4x", "flops 2x"]


@pytest.fixture
def front(job_file: Callable[..., Path]) -> Path:
    search = {"algorithms": ["surrogate", "ga"], "evaluations": 8, "seeds": [0], "picks": 3}
    return job_file(budgets={"flops": ["2x", "4x", "8x"]}, search=search)


def test_a_front_is_searched_listed_and_exported(
    front: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(front), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = found["front"]
    assert [row["point"] for row in rows] == POINTS
    for row, bound in zip(rows, (1 / 8, 1 / 4, 1 / 2), strict=True):
        assert row["costs"]["flops"] <= bound
    judged = [row["unseen"] for row in rows]
    assert None not in judged
    assert judged == sorted(judged, reverse=True)
    assert [point["budgets"] for point in found["points"]] == [
        {"flops": times} for times in ("8x", "4x", "2x")
    ]
    assert all(row["budgets_met"] for point in found["points"] for row in point["league"])

    assert main(["search", str(front)]) == 0  # again, as text: nothing is scored
    text = capsys.readouterr().out
    assert all(row["run"] in text for row in rows)
    assert main(["runs", "--json", "--store", found["store"]]) == 0
    runs = json.loads(capsys.readouterr().out)
    assert [run["budgets"] for run in runs] == [point for point in POINTS for _ in range(2)]

    assert main(["show", rows[1]["run"], "--json", "--store", found["store"]]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["budgets"] == {"flops": 0.25}
    assert shown["fitness"] == rows[1]["fitness"]
    out = tmp_path / "out"
    assert main(["export", rows[2]["run"], "-o", str(out), "--store", found["store"]]) == 0
    profile = json.loads((out / "profile.json").read_text())
    assert profile["fitness"]["value"] == rows[2]["fitness"]
    assert profile["provenance"]["job"] == found["points"][2]["job"]


def test_a_submitted_front_leaves_a_folder_for_each_point(front: Path, tmp_path: Path) -> None:
    job = load_model_job(front)
    assert job.store is not None
    points = prepare_points(job)
    with points[0]:
        found = run_points(points, RunStore(job.store))
        write_results(tmp_path / "results", points, found, silent, ["safetensors"])
    rows = json.loads((tmp_path / "results" / "front.json").read_text())["front"]
    for row in rows:
        folder = tmp_path / "results" / row["point"].replace(" ", "-")
        profile = json.loads((folder / "best" / "profile.json").read_text())
        assert profile["provenance"]["run"] == row["run"]
        assert profile["costs"]["flops"] == row["costs"]["flops"]
        assert (folder / "league.json").is_file()
        assert (folder / "best" / "model.safetensors").is_file()
