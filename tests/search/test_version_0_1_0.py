"""What version 0.1.0 wrote opens and goes on, and its database is made again as it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from apportion.db.layers.database import LayerDatabase
from apportion.db.runs.store import RunStore
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.building import build
from apportion.search.runs.pipeline import job_runs, prepare, run_search

FIXTURE = Path(__file__).parents[1] / "fixtures" / "v0_1_0"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in."""
    made = tmp_path / "v0_1_0"
    shutil.copytree(FIXTURE, made)
    monkeypatch.chdir(made)
    return made


def job(folder: Path) -> Any:
    return parse_model_job(yaml.safe_load((folder / "job.yaml").read_text()), folder / "job.yaml")


def test_the_database_opens_and_the_search_goes_on(folder: Path) -> None:
    """One run was finished, the other one half way."""
    before = LayerDatabase.open(folder / "database")
    store = RunStore(f"sqlite:///{folder / 'store.db'}")
    with prepare(job(folder)) as problem:
        assert problem.database.fingerprint == before.fingerprint
        names = [run.id for run in job_runs(problem)]
        earlier = [list(store.trials(name)) for name in names]
        assert list(map(len, earlier)) == [60, 30]
        results = run_search(problem, store)
    assert [result.run.id for result in results] == names
    assert [result.run.state for result in results] == ["finished", "finished"]
    assert all(result.evaluations == 60 for result in results)
    for name, trials in zip(names, earlier, strict=True):
        assert list(store.trials(name))[: len(trials)] == trials


def test_the_database_is_made_again_as_it_was(folder: Path) -> None:
    (folder / "database").rename(folder / "before")
    before = LayerDatabase.open(folder / "before")
    _, made = build(job(folder))
    assert made.calibration_fingerprint == before.calibration_fingerprint
    assert list(made.layers) == list(before.layers)
    for name, record in before.layers.items():
        own = made.layers[name].to_json()
        assert {k: v for k, v in own.items() if k != "entries"} == {
            k: v for k, v in record.to_json().items() if k != "entries"
        }
        for then, now in zip(record.entries, made.layers[name].entries, strict=True):
            assert (then.level, then.bits) == (now.level, now.bits)
            if "w" in then.level and ":w" not in then.level:  # settles by coordinate descent now
                assert 0 < now.error < then.error * (1 + 1e-4)
            else:
                assert then.nonzeros == now.nonzeros
                assert now.error == pytest.approx(then.error, rel=1e-4, abs=1e-12)
