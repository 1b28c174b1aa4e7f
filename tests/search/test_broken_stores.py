"""Run stores that were altered or written by a newer version: one line says what and where."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from apportion.db.runs.sqlite import sqlite_url
from apportion.search.cli.main import main
from tests.search.test_tables import job


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job on a table of six layers with five levels, searched."""
    folder = tmp_path_factory.mktemp("searched")
    job(folder, search={"algorithms": ["ga"], "evaluations": 12, "seeds": [0]})
    assert main(["search", str(folder / "job.yaml"), "--json"]) == 0
    return folder


def spec(store: sqlite3.Connection) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.execute("SELECT spec FROM jobs").fetchone()[0])
    return found


def without(content: dict[str, Any], key: str) -> str:
    return json.dumps({name: value for name, value in content.items() if name != key})


CANDIDATES = {
    "dense,dense": "trial 3: the candidate 'dense,dense' is no list of level indices",
    "": "trial 3: the candidate '' is no list of level indices",
    "1,2": "trial 3: a candidate of 2 levels for 6 layers",
    "1,1,1,1,1,1,1": "trial 3: a candidate of 7 levels for 6 layers",
    "0,0,0,9,0,0": "trial 3: level index 9 of layer 3, valid are 0 to 4",
    "0,0,0,-1,0,0": "trial 3: level index -1 is below 0",
}
TRIAL = "UPDATE trials SET candidate = ? WHERE number = 3"
SPECS = {
    "{": "spec: no readable JSON",
    "[]": "spec: no mapping but '[]'",
    "null": "spec: no mapping but 'null'",
    "[" * 100_000: "spec: no readable JSON",
    "{}": "the job in the run store (altered, or a newer version wrote it): workload: required key",
}


@pytest.mark.parametrize(
    ("change", "value", "said"),
    [
        *(
            ("UPDATE trials SET candidate = ? WHERE number = 3", v, s)
            for v, s in CANDIDATES.items()
        ),
        *(("UPDATE jobs SET spec = ?", value, said) for value, said in SPECS.items()),
        ("UPDATE jobs SET space = ?", "{", "space: no readable JSON"),
        ("UPDATE runs SET parameters = ?", "{", "parameters: no readable JSON"),
        ("UPDATE runs SET parameters = ?", "[1]", "parameters: no mapping but '[1]'"),
        ("UPDATE runs SET notes = ?", "nothing", "notes: no readable JSON"),
        ("UPDATE jobs SET spec = ?", "-workload", "workload: required key is missing"),
        ("UPDATE jobs SET spec = ?", "+future", "future: unknown key 'future'"),
    ],
)
def test_what_is_altered_is_named_in_one_line(
    change: str,
    value: str,
    said: str,
    searched: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "apportion.sqlite"
    with sqlite3.connect(searched / "apportion.sqlite") as store, sqlite3.connect(file) as copy:
        store.backup(copy)
        run = copy.execute("SELECT id FROM runs").fetchone()[0]
        if value.startswith("-"):
            value = without(spec(copy), value[1:])
        elif value.startswith("+"):
            value = json.dumps(spec(copy) | {value[1:]: 1})
        copy.execute(change, (value,))
    capsys.readouterr()
    assert main(["show", run, "--store", sqlite_url(file)]) == 1
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.startswith("apportion: ")
    assert shown.count("\n") == 1
    assert "unexpected" not in shown
    assert len(shown) < 600
