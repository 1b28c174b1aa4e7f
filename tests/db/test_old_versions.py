"""What version 0.1.0 made is read by this one: its layer database, and its run store, in which one
run had finished and another was stopped after 30 of 60 trials."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from apportion.db.layers.database import LayerDatabase
from apportion.db.runs.sqlite import sqlite_url
from apportion.db.runs.store import RunStore
from apportion.evaluators.workloads.workload import model_fingerprint
from apportion.search.cli.main import main
from apportion.search.jobs.job_file import load_model_job
from apportion.search.runs.pipeline import prepare

OLD = Path(__file__).parents[1] / "fixtures" / "v0_1_0"
JOB, FINISHED, STOPPED = "feee5b8b", "ga-s0-d93bffcf", "surrogate-s0-e28d0bf1"
Told = list[tuple[tuple[int, ...], float, float]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As the user finds it: the job file with all that it names, and the run store beside it."""
    made = tmp_path / "job"
    shutil.copytree(OLD, made)
    (made / "store.db").rename(made / "apportion.sqlite")
    return made


def told_then(run: str) -> Told:
    """Candidate, fidelity, fitness, as SQLite itself reads the old store."""
    with sqlite3.connect(f"file:{OLD / 'store.db'}?mode=ro&immutable=1", uri=True) as store:
        rows = store.execute(
            "SELECT candidate, fidelity, fitness FROM trials WHERE run = ? ORDER BY number", (run,)
        )
        return [(tuple(map(int, text.split(","))), *numbers) for text, *numbers in rows]


def told_now(folder: Path, run: str) -> Told:
    store = RunStore(sqlite_url(folder / "apportion.sqlite"), reading=True)
    found = [(t.candidate, t.fidelity, t.fitness) for t in store.trials(run)]
    store.close()
    return found


def test_the_layer_database_opens_and_every_entry_is_what_its_checksum_says(folder: Path) -> None:
    job = load_model_job(folder / "job.yaml")
    before = {file: file.read_bytes() for file in (folder / "database").rglob("*.safetensors")}
    assert len(before) == 14
    with prepare(job) as problem:
        assert problem.id == JOB
        fingerprint = model_fingerprint(problem.workload.model)
    opened = LayerDatabase.open(folder / "database", fingerprint)
    opened.verify()
    assert {file: file.read_bytes() for file in before} == before  # nothing was made anew


def test_the_run_store_is_read_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "apportion.sqlite").read_bytes()
    url = sqlite_url(folder / "apportion.sqlite")
    assert main(["runs", "--store", url]) == 0
    listed = capsys.readouterr().out
    assert f"{FINISHED}  {JOB}" in " ".join(listed.split()).replace(" ", "  ")
    store = RunStore(url, reading=True)
    assert {run.id: (run.state, run.told) for run in store.runs(JOB)} == {
        FINISHED: ("finished", 60),
        STOPPED: ("failed", 30),
    }
    store.close()
    assert told_now(folder, FINISHED) == told_then(FINISHED)
    assert (folder / "apportion.sqlite").read_bytes() == before


def test_search_goes_on_where_the_old_version_stopped(folder: Path) -> None:
    assert main(["search", str(folder / "job.yaml")]) == 0
    store = RunStore(sqlite_url(folder / "apportion.sqlite"), reading=True)
    runs = {run.id: run for run in store.runs()}
    assert set(runs) == {FINISHED, STOPPED}
    assert {run.state for run in runs.values()} == {"finished"}
    store.close()
    assert told_now(folder, FINISHED) == told_then(FINISHED)
    old, new = told_then(STOPPED), told_now(folder, STOPPED)
    assert (len(old), len(new)) == (30, 60)
    assert new[:30] == old
    assert min(fitness for _, _, fitness in new) == pytest.approx(0.038087, rel=0.05)
