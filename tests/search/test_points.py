"""Budgets with a list of points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from apportion.compressors.errors import ConfigurationError, JobError
from apportion.search.jobs.job import Job
from apportion.search.jobs.job_file import json_schema, load_model_job
from apportion.search.jobs.titles import folder_name, title
from apportion.search.schedules.prune import prune

BASE: dict[str, Any] = {"workload": {"data": {"kind": "digits"}}, "database": {"path": "db"}}


def load(folder: Path, **content: Any) -> Job:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(BASE | content))
    return load_model_job(path)


@pytest.mark.parametrize("flops", [["2x", 0.25, "10%"], ["10%", 0.25, "2x"]])
def test_points_are_jobs_from_the_tightest_on(flops: list[Any], tmp_path: Path) -> None:
    job = load(tmp_path, budgets={"params": "50%", "flops": flops})
    assert job.is_front
    budgets = [point.budgets for point in job.points()]
    assert budgets == [{"params": "50%", "flops": point} for point in ("10%", 0.25, "2x")]
    shares = [{own.metric: own.share for own in point.bounds()} for point in job.points()]
    assert shares == [{"params": 0.5, "flops": share} for share in (0.1, 0.25, 0.5)]
    assert not any(point.is_front for point in job.points())
    assert Job.model_validate(json.loads(json.dumps(job.model_dump(mode="json")))) == job
    jsonschema.validate(BASE | {"budgets": {"flops": flops}}, json_schema())
    with pytest.raises(ConfigurationError, match="takes one point"):
        job.bounds()


def test_one_point_is_the_job_itself(tmp_path: Path) -> None:
    job = load(tmp_path, budgets={"flops": "2x"})
    assert job.points() == [job]


def test_amounts_and_times_faster_are_points_too(tmp_path: Path) -> None:
    job = load(tmp_path, budgets={"bits": ["20KiB", "1MiB"]})
    assert [point.budgets["bits"] for point in job.points()] == ["20KiB", "1MiB"]
    job = load(tmp_path, budgets={"speedup": [2, 3]}, latency={"table": "t.csv"})
    assert [point.budgets["speedup"] for point in job.points()] == [3, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"budgets": {"flops": ["2x", "4x"], "params": ["2x", "3x"]}},
            "budget 'params': one metric may have a list of points, and 'flops' has one already",
        ),
        ({"budgets": {"flops": ["2x", "8x", "4x"]}}, "or back: [2x, 4x, 8x]"),
        ({"budgets": {"flops": ["2x", 0.5]}}, "the points 2x and 0.5 are the same one"),
        ({"budgets": {"flops": ["2x"]}}, "2 to 100 points, got 1"),
        ({"budgets": {"flops": []}}, "2 to 100 points, got 0"),
        ({"budgets": {"flops": ["2x", "40M"]}}, "all be shares of the dense model"),
        ({"budgets": {"flops": ["2x", "0.5x"]}}, "must be 1x or more"),
        ({"budgets": {"flops": ["2x", True]}}, "not a truth value"),
        ({"budgets": {"flop": ["2x", "3x"]}}, "unknown metric 'flop'; did you mean 'flops'"),
        ({"budgets": {"speedup": [2, 3]}}, "a latency budget needs times"),
        (
            {"budgets": {"flops": ["2x", "3x"]}, "search": {"evaluations": 3}},
            "search.evaluations: 3, and a front needs 4 at each point",
        ),
        (
            {
                "budgets": {"flops": ["2x", "3x"]},
                "database": {"path": "db", "levels": ["dense", "channels-0.5"]},
                "schedule": {"kind": "linear", "iterations": 2},
            },
            "schedule: linear trains its way to one point",
        ),
    ],
)
def test_lists_that_make_no_sense_are_refused_in_one_line(
    content: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(JobError) as raised:
        load(tmp_path, **content)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_prune_takes_one_point(tmp_path: Path) -> None:
    job = load(tmp_path, budgets={"flops": ["2x", "3x"]})
    with pytest.raises(ConfigurationError, match="a list of points is a front"):
        prune(job, tmp_path / "out")


def test_titles() -> None:
    assert title({"flops": "4x", "bits": "1.2MiB"}) == "flops 4x, bits 1.2MiB"
    assert title({"flops": ("2x", 0.25)}) == "flops 2x, 0.25"
    assert folder_name({"flops": "12.5%", "bits": "1MiB"}) == "flops-12.5pct-bits-1MiB"
