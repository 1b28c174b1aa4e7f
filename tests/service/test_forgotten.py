"""A Ray that is gone, or was started anew, takes no job along: the storage knows them all."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apportion.compressors.errors import ConfigurationError, UnknownNameError
from apportion.search.service import client, local
from apportion.search.service.client import Service
from apportion.search.service.folder import JobFolder, JobState


class NewHead:
    """A head that was started anew: it knows no job, and its shell is this machine's."""

    remote, address = True, "http://head:8265"

    def __init__(self, _: object) -> None:
        self.started: list[tuple[dict[str, str], int]] = []

    def attempts(self) -> dict[str, list[Any]]:
        return {}

    def run(self, command: str) -> tuple[str, str]:
        environment = {**os.environ, "RAY_PYTHON": sys.executable}
        done = subprocess.run(
            command, shell=True, env=environment, capture_output=True, text=True, check=False
        )
        return "SUCCEEDED" if done.returncode == 0 else "FAILED", done.stdout + done.stderr

    def start(self, metadata: dict[str, str], attempt: int) -> None:
        self.started.append((metadata, attempt))


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(client, "RayJobs", NewHead)
    storage = tmp_path / "sto rage[1]"
    done = JobState("done", "done.yaml", state="finished", attempt=2, formats=["onnx"])
    JobFolder(storage, "done").write_state(done)
    (storage / "jobs/done/results").mkdir()
    (storage / "jobs/done/results/league.json").write_text("{}")
    JobFolder(storage, "cut").write_state(JobState("cut", "cut.yaml", state="searching", attempt=3))
    (storage / "jobs/bad").mkdir()
    (storage / "jobs/bad/state.json").write_text("{")
    return storage


def test_a_restarted_heads_jobs_are_found_in_the_storage(storage: Path) -> None:
    service = Service("http://head:8265", str(storage))
    assert {s.job: s.state for s in service.states()} == {"done": "finished", "cut": "failed"}
    assert service.state("done").attempt == 2
    assert "resume it" in str(service.state("cut").error)
    with pytest.raises(UnknownNameError, match="did you mean 'done'"):
        service.state("don")
    with pytest.raises(ConfigurationError, match="is not running"):
        service.cancel("cut")


def test_a_restarted_heads_jobs_are_resumed_with_what_they_were(storage: Path) -> None:
    service = Service("http://head:8265", str(storage))
    service.resume("cut")
    ray: Any = service._ray
    ((metadata, attempt),) = ray.started
    assert attempt == 4
    assert (metadata["storage"], metadata["file"]) == (str(storage), "cut.yaml")


def test_a_restarted_heads_results_are_fetched_by_url(storage: Path, tmp_path: Path) -> None:
    (storage / "jobs/bad/state.json").unlink()
    service = Service("http://head:8265", f"file://{storage}")
    assert service.state("done").state == "finished"
    assert [path.name for path in service.fetch("done", tmp_path / "out")] == ["league.json"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    local.home().mkdir()
    return local.home()


def said(**change: Any) -> None:
    """What a keeper of this machine's Ray leaves where others look."""
    there = {"address": "http://127.0.0.1:1", "cluster": "127.0.0.1:2", "pid": os.getpid()}
    there |= {"started": local._started(os.getpid())}
    local.file("json").write_text(json.dumps(there | change))


@pytest.mark.usefixtures("home")
def test_only_a_keeper_that_holds_its_lock_is_believed() -> None:
    assert local.running() is None
    said()  # by a process that is alive, and may be anything by now
    assert local.running() is None
    with local.file("lock").open("w") as lock:
        assert local.running() is None
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert local.running() == "http://127.0.0.1:1"
        assert local.running("cluster") == "127.0.0.1:2"
        said(started="1")  # an earlier one's, whose number this process has
        assert local.running() is None
        said(pid=2**22 + 1)
        assert local.running() is None
        local.file("json").write_text("{")
        assert local.running() is None


@pytest.mark.usefixtures("home")
def test_a_keeper_on_another_machine_that_shares_the_home_is_not_this_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {local.file("json")}
    monkeypatch.setattr(local.platform, "node", lambda: "other")
    files.add(local.file("json"))
    monkeypatch.setattr(local, "_boot", lambda: "another start of it")
    files.add(local.file("json"))
    monkeypatch.setattr(local.os, "readlink", lambda _: "pid:[7]")
    files.add(local.file("json"))
    assert len(files) == 4


def test_the_keeper_outlives_its_job_server_while_jobs_give_signs(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="apportion[ray] is not installed")
    folder = JobFolder(home, "mine")
    state = JobState("mine", "mine.yaml", state="searching")
    folder.write_state(state)
    folder.beat()
    slept: list[float] = []
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += 10.0
        if len(slept) == 50:
            state.state = "finished"
            folder.write_state(state)

    fake = SimpleNamespace(sleep=sleep, monotonic=lambda: clock.now)
    monkeypatch.setattr(local, "time", fake)
    local._serve("http://127.0.0.1:1")  # nothing listens there
    assert 50 <= len(slept) < 60


def test_jobs_that_give_signs_go_on_where_their_job_server_is_gone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for job in ("lives", "dead"):
        JobFolder(home, job).write_state(JobState(job, "j.yaml", state="searching"))
    JobFolder(home, "lives").beat()
    service = Service()

    def gone() -> Any:
        raise ConfigurationError("no Ray cluster answers")

    monkeypatch.setattr(service._ray, "attempts", gone)
    states = {state.job: state.state for state in service.states()}
    assert states == {"lives": "searching", "dead": "failed"}
    with pytest.raises(ConfigurationError, match="cannot be resumed while it runs"):
        service.resume("lives")
