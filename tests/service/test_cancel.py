"""A job that is cancelled says so itself, at once, in state.json and in the store."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apportion.db.runs.store import RunStore
from apportion.evaluators.cluster.connection import start_ray
from apportion.search.jobs.job_file import parse_job
from apportion.search.runs.pipeline import prepare, run_search
from apportion.search.service.folder import JobFolder, JobState
from apportion.search.service.head import driver
from apportion.search.service.head.reporter import Reporter
from apportion.search.service.mirror import Mirror


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


class _Ray:
    """Takes the handler for SIGTERM as its own, as Ray does."""

    def init(self, **_: Any) -> str:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        return "context"


def _run_driver(storage: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    arguments = ["driver", "--storage", str(storage), "--job", "mine", "--file", "mine.yaml"]
    monkeypatch.setattr(sys, "argv", arguments)
    return driver.main()


def test_a_cancelled_job_says_so_before_anything_else_and_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = JobFolder(tmp_path, "mine")
    seen: list[str] = []

    def work(_folder: Any, _options: Any, reporter: Reporter, _mirror: Any) -> None:
        start_ray(_Ray())
        reporter.enter("searching")
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:  # the workers are stopped; what still reports must not make it go on
            state = folder.read_state()
            seen.append(state.state if state else "none")
            os.kill(os.getpid(), signal.SIGTERM)  # an impatient second one
            reporter.write()

    monkeypatch.setattr(driver, "_run", work)
    assert _run_driver(tmp_path, monkeypatch) == 1
    assert seen == ["cancelled"]
    state = folder.read_state()
    assert state is not None
    assert (state.state, state.error) == ("cancelled", None)
    assert state.ended is not None
    assert '"state": "cancelled"' in capsys.readouterr().out.strip().splitlines()[-1]


def test_signs_of_life_are_given_while_a_step_reports_nothing(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path, "mine")
    reporter = Reporter(folder, JobState("mine", "mine.yaml"), Mirror(str(tmp_path)))
    reporter.start()
    end = time.monotonic() + 30
    while not (folder.path / "alive").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    reporter.enter("finished")


def test_an_interrupted_run_is_cancelled_in_the_store_and_goes_on_from_there(
    tmp_path: Path,
) -> None:
    (tmp_path / "times.csv").write_text(
        "layer,level,seconds\n" + "".join(f"{i},dense,2\n{i},2:4,1\n" for i in "abcdef")
    )
    content = {
        "workload": {"table": "times.csv"},
        "budgets": {"speedup": "1.2x"},
        "search": {"algorithms": ["random"], "evaluations": 12, "seeds": [0]},
    }
    job = parse_job(content, tmp_path / "job.yaml")
    store = RunStore(str(job.store))
    told = np.zeros(1, dtype=int)

    def progress(*_: object) -> None:
        told[0] += 1
        if told[0] == 5:
            raise KeyboardInterrupt

    with prepare(job) as problem:
        with pytest.raises(KeyboardInterrupt):
            run_search(problem, store, progress)
        assert [run.state for run in store.runs()] == ["cancelled"]
        run_search(problem, store)
    assert [run.state for run in store.runs()] == ["finished"]
