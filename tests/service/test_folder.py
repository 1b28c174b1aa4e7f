"""What is said of a job is true of that job, and harms no other."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from apportion.search.cli.service import _print_job, _row
from apportion.search.service import client, local
from apportion.search.service.client import Service
from apportion.search.service.folder import SILENT, JobFolder, JobState
from apportion.search.web.jobs import Jobs
from apportion.search.web.server import make_app

GOOD = JobState(
    "good",
    "good.yaml",
    state="searching",
    runs=[{"run": "ga-s0", "state": "running", "asked": 3.0, "evaluations": 9.0, "best": None}],
    best={"run": "ga-s0", "fitness": 0.5},
    workers={"there": 2, "replaced": {}},
).to_json()
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"job": "bad", "sta',
    "list": b"[]",
    "null": b"null",
    "no state": b'{"job": "bad"}',
    "deep": b"[" * 100_000,
    "not UTF-8": b"\xff\xfe{}",
    "step": json.dumps(GOOD | {"step": "compress"}).encode(),
    "runs": json.dumps(GOOD | {"runs": [{"run": "ga-s0"}]}).encode(),
    "best": json.dumps(GOOD | {"best": {"fitness": "low"}}).encode(),
    "workers": json.dumps(GOOD | {"workers": {"there": 1}}).encode(),
    "times": json.dumps(GOOD | {"submitted": "yesterday"}).encode(),
    "number": json.dumps(GOOD | {"search": 3, "store": ["x"]}).encode(),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The storage of this machine's jobs, without a Ray, with one good job."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    JobFolder(local.home(), "good").write_state(JobState.from_json(GOOD))
    return local.home()


def page(storage: Path | str) -> TestClient:
    return TestClient(make_app(Jobs(None, storage)), base_url="http://localhost")


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_state_is_its_own_jobs_failure_alone(how: str, home: Path) -> None:
    bad = home / "jobs/bad"
    bad.mkdir()
    (bad / "state.json").write_bytes(BROKEN[how])
    states = {state.job: state for state in Service().states()}
    assert states["good"].runs == GOOD["runs"]
    if how != "no state":  # which is a state: queued
        assert "state.json cannot be read" in str(states["bad"].error)
    for state in states.values():
        _row(state)
        _print_job(state)
    for storage in (home, f"file://{home}"):
        rows = {row["job"]: row for row in page(storage).get("/api/jobs").json()}
        assert rows["good"]["state"] == "searching"
        assert "bad" in rows


def test_a_state_folder_in_its_place_is_a_failure_too(home: Path) -> None:
    (home / "jobs/bad/state.json").mkdir(parents=True)
    assert {state.job: state.state for state in Service().states()}["bad"] == "failed"


def test_a_state_of_a_later_version_is_read(home: Path) -> None:
    content = GOOD | {"mood": "fine", "runs": [{**GOOD["runs"][0], "later": 1}]}
    (home / "jobs/good/state.json").write_text(json.dumps(content))
    assert Service().state("good").runs[0]["later"] == 1


def test_a_process_that_gives_no_sign_of_life_has_failed_for_the_page_too(home: Path) -> None:
    folder = JobFolder(home, "good")
    folder.beat()
    assert page(home).get("/api/jobs").json()[0]["state"] == "searching"
    then = time.time() - SILENT - 1
    os.utime(folder.path / "alive", (then, then))
    assert page(home).get("/api/jobs").json()[0]["state"].startswith("failed: its process gave no")
    folder.beat()
    assert page(home).get("/api/jobs").json()[0]["state"] == "searching"


def test_messages_are_cut(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = JobState("long", "long.yaml", state="failed", error="x" * 900_000)
    JobFolder(home, "long").write_state(state)
    assert len((home / "jobs/long/state.json").read_text()) < 3000

    class Ray:
        remote, address = True, "http://head:8265"

        def attempts(self) -> dict[str, list[Any]]:
            return {"long": [_Attempt()]}

        def client(self, **_: Any) -> Any:
            return self

        def get_job_logs(self, _: str) -> str:
            return ""

    monkeypatch.setattr(client, "RayJobs", lambda _: Ray())
    assert len(str(Service("http://head:8265").state("long").error)) < 3000


class _Status:
    value = "FAILED"

    def is_terminal(self) -> bool:
        return True


class _Attempt:
    submission_id, message, status = "long", "y" * 900_000, _Status()
    start_time, end_time = 1, 2
    metadata = {"apportion": "long", "storage": "~/apportion", "file": "long.yaml"}  # noqa: RUF012
