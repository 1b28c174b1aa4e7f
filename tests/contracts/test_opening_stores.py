"""What is opened as a run store: one that is there, or an empty database; nobody else's."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from apportion.compressors.errors import StoreError
from apportion.db.runs.sql import SqlDatabase
from apportion.db.runs.sqlite import sqlite_url
from apportion.db.runs.store import Run, RunStore, StoredTrial
from apportion.search.cli.main import main
from tests.contracts.test_run_store import execute, server, url

__all__ = ["server", "url"]  # fixtures: on SQLite, and on a PostgreSQL server


def _tables(url: str) -> list[str]:
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    found = sorted(sa.inspect(engine).get_table_names())
    engine.dispose()
    return found


def _contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("reading", [True, False])
def test_another_applications_database_is_refused_and_stays_as_it_is(
    url: str, tmp_path: Path, reading: bool
) -> None:
    execute(url, "CREATE TABLE customers (name TEXT)", "CREATE TABLE runs (id TEXT)")
    before = _contents(tmp_path)
    with pytest.raises(StoreError, match="another application's database.*customers, runs"):
        RunStore(url, reading=reading)
    assert _contents(tmp_path) == before  # not a byte: the journal mode is kept in the file
    assert _tables(url) == ["customers", "runs"]


def test_reading_makes_no_tables(url: str, tmp_path: Path) -> None:
    if url.startswith("sqlite"):
        sqlite3.connect(tmp_path / "runs.sqlite").execute("VACUUM").connection.close()
    before = _contents(tmp_path)
    with pytest.raises(StoreError, match="no run store in it; `apportion search` makes one"):
        RunStore(url, reading=True)
    assert _tables(url) == []
    assert _contents(tmp_path) == before
    with pytest.raises(StoreError, match="no such file"):
        RunStore(sqlite_url(tmp_path / "none.sqlite"), reading=True)
    assert not (tmp_path / "none.sqlite").exists()


def test_a_store_opened_for_reading_sees_what_is_written_and_takes_nothing(url: str) -> None:
    store = RunStore(url)
    store.add_job("j", {"budgets": {}})
    store.add_run(Run("r", "j", "ga", {}, 0, 10.0))
    reader = RunStore(url, reading=True)
    assert reader.trials("r") == []
    trial = StoredTrial((1, 2), 1.0, 0.5, True, 0.1)
    store.append("r", "p", 0, trial)
    assert reader.trials("r") == [trial]
    for change in (
        lambda: reader.append("r", "p", 1, trial),
        lambda: reader.add_selection("r", (1, 2), 0.5),
        lambda: reader.add_job("k", {}),
        lambda: reader.set_state("r", "failed", 1.0),
    ):
        with pytest.raises(StoreError, match="read-?only"):
            change()
    assert store.trials("r") == [trial]
    for opened in (store, reader):
        opened.close()


@pytest.mark.parametrize("command", [["runs"], ["compare"], ["show", "r"], ["export", "r", "-o"]])
def test_reading_commands_leave_a_foreign_database_alone(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "app.sqlite"
    execute(f"sqlite:///{file}", "CREATE TABLE customers (name TEXT)")
    before = _contents(tmp_path)
    extra = [str(tmp_path / "out")] if command[-1] == "-o" else []
    assert main([*command, *extra, "--store", f"sqlite:///{file}"]) == 1
    assert "another application's database" in capsys.readouterr().err
    assert _contents(tmp_path) == before


@pytest.mark.parametrize(
    "memory", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true"]
)
def test_a_store_in_memory_is_refused(memory: str) -> None:
    with pytest.raises(StoreError, match="in memory"):
        RunStore(memory)


def test_other_kinds_of_urls_say_what_is_valid() -> None:
    with pytest.raises(StoreError, match="three slashes"):
        RunStore("sqlite://runs.sqlite")
    with pytest.raises(StoreError, match="%3F"):
        RunStore("sqlite:///what?ever.sqlite")
    with pytest.raises(StoreError, match="sqlite:///FILE or postgresql://"):
        RunStore("mysql://host/runs")


@pytest.mark.parametrize(
    "name",
    ["a b", "what?ever", "a#b", "c%20d", "100%", "~", "läyer-层", "a&b=c", "file:x", "'\"`$"],
)
def test_a_store_lies_where_its_folder_is_whatever_that_is_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    url = sqlite_url(folder / f"{name}.sqlite")
    store = RunStore(url)
    store.add_job("j", {})
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert f"{name}.sqlite" in {path.name for path in folder.iterdir()}
    assert RunStore(url, reading=True).jobs() == ["j"]
    monkeypatch.chdir(folder)
    assert sqlite_url(f"{name}.sqlite") == url


def test_a_tilde_at_the_beginning_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    RunStore("sqlite:///~/runs.sqlite").close()
    assert (tmp_path / "runs.sqlite").is_file()


def _as_somebody_else(work: Callable[[], None]) -> str:
    """What `work` prints in a process that may write nowhere; what it raises, where it does."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(theirs, 1)
            if os.getuid() == 0:
                os.setuid(12345)
            work()
        except BaseException as error:
            os.write(1, repr(error).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.parametrize("left", ["closed", "killed"])
def test_a_store_on_a_read_only_mount_is_read(tmp_path: Path, left: str) -> None:
    """`killed`: its last writer left its log, and what it shared with readers, in the folder."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name) / "mount"
        folder.mkdir()
        store = RunStore(sqlite_url(tmp_path / "runs.sqlite"))
        store.add_job("j", {})
        store.add_run(Run("r", "j", "ga", {}, 0, 10.0))
        store.append("r", "p", 0, StoredTrial((1, 2), 1.0, 0.5, True, 0.1))
        if left == "closed":
            store.close()
        for file in tmp_path.iterdir():
            shutil.copy(file, folder)
        store.close()
        assert len(list(folder.iterdir())) == (1 if left == "closed" else 3)
        before = _contents(folder)
        for path in (folder.parent, folder):
            path.chmod(0o555)

        def read() -> None:
            reader = RunStore(sqlite_url(folder / "runs.sqlite"), reading=True)
            found = [t.candidate for t in reader.trials("r")]
            os.write(1, f"{found} {reader.holder('j')}".encode())

        try:
            assert _as_somebody_else(read) == "[(1, 2)] None"
            assert _contents(folder) == before
        finally:
            for path in (folder.parent, folder):
                path.chmod(0o755)


def test_an_interrupt_while_a_connection_goes_back_leaves_no_traceback(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = SqlDatabase(url, lambda _engine, _url: 1)

    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    sa.event.listen(database._engine.pool, "reset", interrupt)
    with pytest.raises(KeyboardInterrupt):
        database.rows(sa.text("SELECT 1"))
    assert caplog.text == ""
    sa.event.remove(database._engine.pool, "reset", interrupt)
    assert [tuple(row) for row in database.rows(sa.text("SELECT 1"))] == [(1,)]
    database.close()
