"""A database's folder after a process that was killed, and between two that begin at once."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from apportion.compressors.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseMismatchError,
    OutputError,
)
from apportion.db.files import write_atomically, write_json, write_text
from apportion.db.layers.claim import claimed
from tests.db.test_build import make

PLAN = {"format": "apportion-layer-database", "levels": ["dense"]}
KILLED = """
import os, sys
from pathlib import Path
from tests.db.test_build import make
left, sync = int(sys.argv[2]), os.fsync
def kill(handle):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
    sync(handle)
os.fsync = kill
make(Path(sys.argv[1]))
"""


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


@pytest.mark.parametrize("number", [1, 2, 4, 5])  # build.json, two of the layers, the manifest
def test_a_build_killed_at_any_write_goes_on_and_leaves_nothing(
    tmp_path: Path, number: int
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "d"), str(number)]
    assert subprocess.run(command, check=False).returncode == -9
    assert len(hidden(tmp_path / "d")) == 1
    assert make(tmp_path / "d").fingerprint == make(tmp_path / "whole").fingerprint
    assert hidden(tmp_path / "d") == []


@pytest.mark.parametrize(
    "name",
    [".build.json.ab", ".build.json.abcdefgh.txt", ".git", ".DS_Store", "build.json.abcdefgh"],
)
def test_other_files_are_not_ours_to_remove(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(DatabaseError, match="holds other files"), claimed(tmp_path, PLAN):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def _claim(path: Path, plan: dict[str, Any], start: Any, results: Any) -> None:
    start.wait()
    try:
        with claimed(path, plan):
            time.sleep(0.5)
        results.put("built")
    except Exception as error:
        results.put(type(error).__name__)


@pytest.mark.parametrize("plans", [(PLAN, PLAN), (PLAN, {**PLAN, "levels": ["dense", "w4"]})])
def test_of_two_that_begin_at_once_one_builds_and_one_is_told(
    tmp_path: Path, plans: tuple[dict[str, Any], ...]
) -> None:
    context = multiprocessing.get_context("fork")
    for turn in range(5):
        start, results = context.Barrier(2), context.Queue()
        both = [
            context.Process(target=_claim, args=(tmp_path / str(turn), plan, start, results))
            for plan in plans
        ]
        for process in both:
            process.start()
        told = sorted(results.get(timeout=60) for _ in both)
        for process in both:
            process.join()
        assert told[-1] == "built"
        assert told[0] in ("DatabaseBusyError", "DatabaseMismatchError")


def test_who_is_busy_with_another_plan_is_told_so(tmp_path: Path) -> None:
    with claimed(tmp_path / "d", PLAN):
        with pytest.raises(DatabaseBusyError), claimed(tmp_path / "d", PLAN):
            pass
        with (
            pytest.raises(DatabaseMismatchError, match="other levels"),
            claimed(tmp_path / "d", {**PLAN, "levels": []}),
        ):
            pass


def test_a_finished_database_is_opened_by_any_number(tmp_path: Path) -> None:
    make(tmp_path / "d")
    handle = os.open(tmp_path / "d", os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)
        make(tmp_path / "d")
    finally:
        os.close(handle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is not that of a layer database"),
        ("null", "is not that of a layer database"),
        ("{}", "is not that of a layer database"),
        ('"text"', "is not that of a layer database"),
        ("{", "cannot be read"),
        ("[" * 1000, "cannot be read: nested"),
        ('{"format": 1, "format": 2}', "cannot be read: the key 'format' stands twice"),
        ('{"format": "apportion-layer-database"}', "other levels"),
        ('{"format": "apportion-layer-database", "levels": ["dense"], "more": 1}', "other more"),
    ],
)
def test_a_build_json_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "build.json").write_text(text)
    with pytest.raises(DatabaseError, match=message), claimed(tmp_path, PLAN):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["build.json"]


def test_a_path_that_no_folder_can_have(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 5000), tmp_path / "f" / "d"):
        (tmp_path / "f").write_text("a file")
        with pytest.raises(OutputError), claimed(path, PLAN):
            pass


def test_temporary_files_of_killed_writes_go_with_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for name, age in (
        (".a.json.abcdefgh", 7200),
        (".a.json.ijklmnop", 0),
        (".b.json.q_rstuvw", 7200),
    ):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / ".a.json.directory").mkdir()
    write_json(path, {})
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == [".a.json.directory", ".a.json.ijklmnop", ".b.json.q_rstuvw", "a.json"]
    write_atomically(path, lambda temporary: write_text(temporary, "b"))
    assert path.read_text() == "b"
