"""Jobs on a real Ray cluster, through the command line, as their users submit them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from apportion.db.layers.database import LayerDatabase
from apportion.db.runs.store import RunStore
from apportion.search.jobs.job_file import load_job, load_model_job
from apportion.search.report.front import front
from apportion.search.runs.front import prepare_points, run_points
from apportion.search.runs.pipeline import prepare, run_search
from apportion.search.schedules.prune import prune
from apportion.search.service.folder import JobFolder
from tests import postgres
from tests.service.conftest import ServiceCluster, write_job


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run id -> its picked candidate, from one process without Ray."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = load_job(write_job(folder, search=_LONG, workers={"count": 0, "cpus": 1}))
    assert job.store is not None
    with prepare(job) as problem:
        return {
            r.run.algorithm: (r.pick.candidate, len(r.trials))
            for r in run_search(problem, RunStore(job.store))
        }


_LONG = {"algorithms": ["random", "anneal"], "evaluations": 1200, "seeds": [0]}


def found(cluster: ServiceCluster, state: dict[str, Any], url: str | None = None) -> dict[str, Any]:
    """As `undisturbed`, of a job in a store; by default the cluster's."""
    store = RunStore(url or f"sqlite:///{cluster.home}/apportion/runs.sqlite")
    picked = {}
    for row in state["runs"]:
        trials = store.trials(row["run"])
        scores = store.selection(row["run"])
        best = min((t for t in trials if t.fidelity == 1.0), key=lambda t: t.fitness).candidate
        picked[row["algorithm"]] = (
            min(scores, key=scores.__getitem__) if scores else best,
            len(trials),
        )
    store.close()
    return picked


def test_a_job_from_submit_to_fetch(cluster: ServiceCluster, tmp_path: Path) -> None:
    job = cluster.submit(write_job(tmp_path, "small.yaml"), "--format", "safetensors", "onnx")
    assert job.startswith("small-")
    followed = cluster.apportion("logs", job, "-f").stdout.splitlines()
    state = cluster.state(job)
    assert state["state"] == "finished", "\n".join(followed)
    assert [
        line
        for line in followed
        if line in ("queued", "building", "searching", "exporting", "finished")
    ] == [
        "queued",
        "building",
        "searching",
        "exporting",
        "finished",
    ]
    assert [(run["asked"], run["evaluations"], run["state"]) for run in state["runs"]] == [
        (30, 30, "finished")
    ] * 2
    assert job in cluster.apportion("status").stdout
    cluster.apportion("fetch", job, "-o", tmp_path / "out")
    profile = json.loads((tmp_path / "out/best/profile.json").read_text())
    assert profile["costs"]["flops"] <= 0.25
    assert {"model.safetensors", "model.onnx"} <= {
        path.name for path in (tmp_path / "out/best").iterdir()
    }
    assert {
        row["algorithm"] for row in json.loads((tmp_path / "out/league.json").read_text())["league"]
    } == {"spdy", "local"}


@pytest.mark.slow
def test_a_job_in_steps_ends_in_results_as_on_one_machine(
    cluster: ServiceCluster, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "budgets": {"params": 0.4},
        "schedule": {"kind": "agp", "iterations": 2},
        "search": {"algorithms": ["milp"], "evaluations": 1, "picks": 1},
    }
    job = cluster.submit(write_job(tmp_path, "steps.yaml", **changes))
    followed = cluster.apportion("logs", job, "-f").stdout
    assert cluster.state(job)["state"] == "finished", followed
    cluster.apportion("fetch", job, "-o", tmp_path / "out")
    own = load_model_job(write_job(tmp_path, workers={"count": 0, "cpus": 1}, **changes))
    here = prune(own, tmp_path / "here").content["steps"]
    there = json.loads((tmp_path / "out/best/schedule.json").read_text())["steps"]
    assert [step["costs"] for step in there] == [step["costs"] for step in here]
    assert [step["accuracy"] for step in there] == [step["accuracy"] for step in here]
    assert (tmp_path / "out/best/model.safetensors").is_file()


def test_a_front_leaves_the_profile_of_every_point_as_on_one_machine(
    cluster: ServiceCluster, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "budgets": {"flops": ["2x", "4x"]},
        "search": {"algorithms": ["ga"], "evaluations": 8, "picks": 1},
    }
    job = cluster.submit(write_job(tmp_path, "front.yaml", **changes))
    followed = cluster.apportion("logs", job, "-f").stdout
    state = cluster.state(job)
    assert state["state"] == "finished", followed
    assert [run["asked"] for run in state["runs"]] == [8, 8]
    cluster.apportion("fetch", job, "-o", tmp_path / "out")
    there = json.loads((tmp_path / "out/front.json").read_text())["front"]
    own = load_model_job(write_job(tmp_path, workers={"count": 0, "cpus": 1}, **changes))
    assert own.store is not None
    points = prepare_points(own)
    with points[0]:
        here = front(points, run_points(points, RunStore(own.store)))
    kept = ("point", "costs", "fitness", "error", "evaluations", "run")
    assert [[row[key] for key in kept] for row in there] == [
        [row[key] for key in kept] for row in here
    ]
    for name, row in zip(("flops-4x", "flops-2x"), there, strict=True):
        profile = json.loads((tmp_path / "out" / name / "best/profile.json").read_text())
        assert profile["provenance"]["run"] == row["run"]


def test_cancelled_killed_and_resumed_a_job_ends_as_if_nothing_had_happened(
    cluster: ServiceCluster, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    job = cluster.submit(write_job(tmp_path, search=_LONG))
    _until_trials(cluster, job, 20)
    assert _actors(cluster) > 0
    cluster.apportion("cancel", job)
    assert cluster.state(job)["state"] == "cancelled"
    assert _actors(cluster) == 0
    cluster.apportion("resume", job)
    _until_trials(cluster, job, 60, attempt=2)
    os.kill(_driver(job), signal.SIGKILL)
    assert _wait_failed(cluster, job)["attempt"] == 2
    cluster.apportion("resume", job)
    refused = cluster.apportion("resume", job, check=False)
    assert refused.returncode == 1
    assert "it cannot be resumed while it runs" in refused.stderr
    state = cluster.wait(job, "finished")
    assert state["attempt"] == 3
    assert found(cluster, state) == undisturbed
    again = cluster.apportion("resume", job, check=False)
    assert "is finished: there is nothing to resume" in again.stderr


def _until_trials(cluster: ServiceCluster, job: str, number: int, attempt: int = 1) -> None:
    """Looks at what the job's process writes: the command line would take as long as the search."""
    folder, end = JobFolder(cluster.home / "apportion", job), time.monotonic() + 120
    while (
        (state := folder.read_state()) is None
        or state.attempt < attempt
        or state.state in ("queued", "building")
        or sum(run["asked"] for run in state.runs) < number
    ):
        assert time.monotonic() < end, state
        time.sleep(0.1)
    assert state.state == "searching", "too late to stop it: the job is finished"


def _driver(job: str) -> int:
    """The process of the job's own Python."""
    listed = subprocess.run(
        ["pgrep", "-f", f"apportion.search.service.head.driver .*--job {job}"],
        capture_output=True,
        text=True,
        check=True,
    )
    pids = [int(pid) for pid in listed.stdout.split()]
    named = [
        pid for pid in pids if "python" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
    ]
    assert len(named) == 1, named
    return named[0]


def _wait_failed(cluster: ServiceCluster, job: str) -> dict[str, Any]:
    end = time.monotonic() + 120
    while (state := cluster.state(job))["state"] != "failed":
        assert time.monotonic() < end, state
        time.sleep(0.5)
    return state


def _actors(cluster: ServiceCluster) -> int:
    """Workers that are alive."""
    from ray.util.state import list_actors

    alive = list_actors(
        address=cluster.address, filters=[("state", "=", "ALIVE"), ("class_name", "=", "PoolActor")]
    )
    return len(alive)


def test_what_cannot_run_is_refused_before_anything_is_queued(
    cluster: ServiceCluster, tmp_path: Path
) -> None:
    before = cluster.apportion("status", "--json").stdout
    for change, message in (
        (
            {"workers": {"count": 4, "cpus": 1}},
            "4 with 1 CPU each: the cluster has room for 2",
        ),
        (
            {"workers": {"count": 1, "gpus": 1}},
            "with 1 CPU, 1 GPU each: the cluster has room for 0",
        ),
        ({"budgets": {"flop": 0.5}}, "did you mean 'flops'"),
        (
            {
                "workload": {
                    "model": "digits_resnet",
                    "data": {"kind": "npz", "calibration": "no.npz", "test": "no.npz"},
                }
            },
            "no.npz",
        ),
        ({"store": "sqlite:///here.sqlite"}, "store: "),
    ):
        refused = cluster.apportion("submit", write_job(tmp_path, **change), check=False)
        assert refused.returncode == 1
        assert message in refused.stderr
    assert cluster.apportion("status", "--json").stdout == before
    refused = cluster.apportion("submit", write_job(tmp_path), "--format", "onx", check=False)
    assert "unknown export format 'onx'; did you mean 'onnx'" in refused.stderr
    unknown = cluster.apportion("status", "jb-1", check=False)
    assert "unknown job 'jb-1'" in unknown.stderr


def test_a_job_may_not_name_code_where_the_operator_has_not_allowed_it(
    cluster: ServiceCluster, tmp_path: Path
) -> None:
    job = cluster.submit(
        write_job(
            tmp_path,
            search={
                "algorithms": ["apportion.search.algorithms.local:LocalSearch"],
                "evaluations": 5,
            },
        )
    )
    state = _wait_failed(cluster, job)
    assert (
        "the job names code of its own (apportion.search.algorithms.local:LocalSearch)"
        in state["error"]
    )
    assert "APPORTION_ALLOW_CODE=1" in state["error"]


def test_a_job_may_not_write_outside_the_storage(cluster: ServiceCluster, tmp_path: Path) -> None:
    outside = {"path": str(tmp_path / "outside"), "levels": ["dense", "unstr-0.50"]}
    refused = cluster.apportion("submit", write_job(tmp_path, database=outside), check=False)
    assert refused.returncode == 1
    assert "lies outside the storage" in refused.stderr
    assert not (tmp_path / "outside").exists()


@pytest.mark.slow
def test_twenty_jobs_at_once_finish_and_none_is_mixed(
    cluster: ServiceCluster, tmp_path: Path
) -> None:
    budgets = [0.9 - 0.03 * i for i in range(20)]
    jobs = [
        cluster.submit(write_job(tmp_path, f"j{i}.yaml", budgets={"flops": b}))
        for i, b in enumerate(budgets)
    ]
    states = [cluster.wait(job, "finished", seconds=1200) for job in jobs]
    assert len({state["search"] for state in states}) == 20
    for job, state, budget in zip(jobs, states, budgets, strict=True):
        assert [run["asked"] for run in state["runs"]] == [30, 30]
        cluster.apportion("fetch", job, "-o", tmp_path / job)
        profile = json.loads((tmp_path / job / "best/profile.json").read_text())
        assert profile["costs"]["flops"] <= profile["budgets"]["flops"] == pytest.approx(budget)


@pytest.mark.slow
def test_a_node_that_goes_and_another_that_comes_change_nothing(
    cluster: ServiceCluster, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    node = cluster.add_node()
    job = cluster.submit(
        write_job(tmp_path, search=_LONG, workers={"count": 3, "at_least": 1, "cpus": 1})
    )
    _until_trials(cluster, job, 20)
    cluster.remove(node)
    cluster.add_node()
    assert found(cluster, cluster.wait(job, "finished")) == undisturbed


@pytest.mark.slow
def test_storage_at_a_url(cluster: ServiceCluster, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    refused = cluster.apportion(
        "submit", write_job(tmp_path), "--storage", f"file://{bucket}", check=False
    )
    assert "needs a PostgreSQL store" in refused.stderr
    with postgres.running() as server:
        job = cluster.submit(
            write_job(tmp_path, store=server.make_database("url")), "--storage", f"file://{bucket}"
        )
        cluster.wait(job, "finished")
    kept = {str(path.relative_to(bucket)) for path in bucket.rglob("*")}
    assert {
        f"jobs/{job}/state.json",
        f"jobs/{job}/package/job.json",
        "databases/digits/manifest.json",
    } <= kept
    assert json.loads((bucket / f"jobs/{job}/state.json").read_text())["state"] == "finished"
    cluster.apportion("fetch", job, "-o", tmp_path / "out")
    assert (tmp_path / "out/best/model.safetensors").is_file()
    LayerDatabase.open(bucket / "databases/digits").verify()


@pytest.mark.slow
def test_a_run_stores_server_that_restarts_changes_nothing(
    cluster: ServiceCluster, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    with postgres.running() as server:
        url = server.make_database("jobs")
        job = cluster.submit(write_job(tmp_path, search=_LONG, store=url))
        _until_trials(cluster, job, 20)
        server.stop("immediate")
        server.start()
        assert found(cluster, cluster.wait(job, "finished"), url) == undisturbed


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")  # somebody else's on the same machine
def test_without_an_address_ray_is_started_for_the_first_job_and_stopped_after_the_last(
    tmp_path: Path,
) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"XDG_DATA_HOME": str(tmp_path / "data"), "HOME": str(tmp_path)}

    def apportion(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "apportion", *map(str, arguments)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=300
        ).stdout

    first = apportion("submit", write_job(tmp_path, "one.yaml")).strip()
    second = apportion("submit", write_job(tmp_path, "two.yaml", budgets={"flops": 0.5})).strip()
    (there,) = (tmp_path / "data/apportion").glob("local-*.json")
    keeper = json.loads(there.read_text())["pid"]
    for job in (first, second):
        apportion("logs", job, "-f")
        assert json.loads(apportion("status", job, "--json"))["state"] == "finished"
        apportion("fetch", job, "-o", tmp_path / job)
        assert (tmp_path / job / "best/profile.json").is_file()
    end = time.monotonic() + 90
    while there.exists() or Path(f"/proc/{keeper}").exists():
        assert time.monotonic() < end, "Ray is still there"
        time.sleep(1)
    assert [state["state"] for state in json.loads(apportion("status", "--json"))] == [
        "finished",
        "finished",
    ]
    assert (
        tmp_path / "apportion.sqlite"
    ).is_file()  # the job file's own store, as with `apportion search`
