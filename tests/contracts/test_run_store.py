"""What every run store must do: on SQLite, and on a PostgreSQL server."""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from apportion.compressors.errors import StoreError, UnknownNameError
from apportion.db.runs import sql
from apportion.db.runs.store import Run, RunStore, StoredTrial
from apportion.search.cli.main import main
from tests import postgres

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.PostgresServer]:
    with postgres.running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'runs.sqlite'}"
    made: str = request.getfixturevalue("server").make_database(f"store{next(_NUMBERS)}")
    return made


@pytest.fixture
def store(url: str) -> Iterator[RunStore]:
    store = RunStore(url)
    store.add_job("j", {"budgets": {"flops": 0.5}})
    store.add_run(Run("r", "j", "ga", {"population": 4}, 0, 10.0))
    yield store
    store.close()


def counts(store: RunStore) -> tuple[int, int, float, float | None]:
    run = store.run("r")
    return run.told, run.scored, run.asked, run.best


def trial(*candidate: int, fitness: float = 1.0, fidelity: float = 1.0) -> StoredTrial:
    return StoredTrial(candidate, fidelity, fitness, True, 0.1)


def test_trials_come_back_in_order_and_exact(store: RunStore) -> None:
    told = [
        trial(2, 0, fitness=0.1 + 0.2),
        trial(0, 300, fitness=float("inf")),
        trial(1, 1, fidelity=0.25),
    ]
    for number, one in enumerate(told):
        store.append("r", "p", number, one)
    assert RunStore(store.url).trials("r") == told


def test_a_trial_number_is_taken_once(store: RunStore) -> None:
    store.append("r", "p", 0, trial(1, 2))
    with pytest.raises(StoreError, match="another process is working on run 'r'"):
        store.append("r", "p", 0, trial(1, 2))
    assert len(store.trials("r")) == 1


def test_a_gap_in_the_log_is_an_error(store: RunStore) -> None:
    store.append("r", "p", 1, trial(1, 2))
    with pytest.raises(StoreError, match="gaps"):
        store.trials("r")


def test_scores_are_found_by_problem_candidate_and_fidelity(store: RunStore) -> None:
    store.append("r", "p", 0, trial(1, 2, fitness=3.0))
    store.append("r", "p", 1, trial(1, 2, fitness=4.0, fidelity=0.5))
    store.append("r", "other", 2, trial(7, 7, fitness=5.0))
    asked = [((1, 2), 1.0), ((1, 2), 0.5), ((1, 2), 0.25), ((7, 7), 1.0), ((0, 0), 1.0)]
    assert store.known_scores("p", asked) == {((1, 2), 1.0): 3.0, ((1, 2), 0.5): 4.0}
    many = [((i, 0), 1.0) for i in range(1000)]
    assert store.known_scores("p", [*many, ((1, 2), 1.0)]) == {((1, 2), 1.0): 3.0}


def test_runs_and_jobs_are_remembered_once(store: RunStore) -> None:
    again = store.add_run(Run("r", "j", "ga", {"population": 4}, 0, 10.0))
    assert again == store.run("r")
    store.set_state("r", "finished", 2.5)
    store.set_state("r", "finished", 0.5)
    assert (store.run("r").state, store.run("r").spent) == ("finished", 3.0)
    store.add_job("j", {"budgets": {}})
    assert store.job("j") == {"budgets": {}}
    assert [run.id for run in store.runs("j")] == ["r"]
    assert store.runs("other") == []


def test_a_run_counts_its_trials_and_finds_the_best_at_full_fidelity(store: RunStore) -> None:
    assert counts(store) == (0, 0, 0.0, None)
    store.append("r", "p", 0, trial(1, fitness=3.0))
    store.append("r", "p", 1, trial(2, fitness=1.0, fidelity=0.5))
    store.append("r", "p", 2, StoredTrial((3,), 1.0, 2.0, False, 0.0))
    assert counts(store) == (3, 2, 2.5, 2.0)
    assert store.runs() == [store.run("r")]


def test_unknown_runs_name_the_nearest(store: RunStore) -> None:
    store.add_run(Run("spdy-s0-1a2b3c4d", "j", "spdy", {}, 0, 10.0))
    with pytest.raises(UnknownNameError, match="did you mean 'spdy-s0-1a2b3c4d'"):
        store.run("spdy-s1-1a2b3c4d")
    with pytest.raises(StoreError, match="no job 'x'"):
        store.job("x")


def test_stores_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="unable to open"):
        RunStore(f"sqlite:///{tmp_path / 'no' / 'folder.sqlite'}")
    (tmp_path / "text.sqlite").write_text(
        "not a database, but long enough to be looked at as one " * 20
    )
    with pytest.raises(StoreError, match="not a database"):
        RunStore(f"sqlite:///{tmp_path / 'text.sqlite'}")
    with pytest.raises(StoreError):
        RunStore("no url at all")


def test_a_store_of_another_version_is_refused(store: RunStore) -> None:
    store._database.write(sa.text("UPDATE apportion_schema SET version = 99"))
    with pytest.raises(StoreError, match="version 99"):
        RunStore(store.url)


_VERSION_1 = """
CREATE TABLE apportion_schema (version INTEGER NOT NULL, PRIMARY KEY (version));
CREATE TABLE jobs (id VARCHAR(16) NOT NULL, created FLOAT NOT NULL, spec TEXT NOT NULL,
  PRIMARY KEY (id));
CREATE TABLE runs (id VARCHAR(80) NOT NULL, job VARCHAR(16) NOT NULL,
  algorithm VARCHAR(200) NOT NULL, parameters TEXT NOT NULL,
  seed BIGINT NOT NULL, evaluations FLOAT NOT NULL, state VARCHAR(12) NOT NULL,
  created FLOAT NOT NULL, spent FLOAT NOT NULL,
  PRIMARY KEY (id), FOREIGN KEY(job) REFERENCES jobs (id));
CREATE TABLE trials (run VARCHAR(80) NOT NULL, number INTEGER NOT NULL,
  problem VARCHAR(64) NOT NULL, candidate TEXT NOT NULL,
  fidelity FLOAT NOT NULL, fitness DOUBLE PRECISION NOT NULL, evaluated BOOLEAN NOT NULL,
  seconds FLOAT NOT NULL,
  PRIMARY KEY (run, number), FOREIGN KEY(run) REFERENCES runs (id));
CREATE TABLE selection (run VARCHAR(80) NOT NULL, candidate VARCHAR(4000) NOT NULL,
  score DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (run, candidate), FOREIGN KEY(run) REFERENCES runs (id));
CREATE INDEX ix_runs_job ON runs (job);
CREATE INDEX trials_by_candidate ON trials (problem, candidate);
INSERT INTO apportion_schema VALUES (1);
INSERT INTO jobs VALUES ('j', 1.0, '{}');
INSERT INTO runs VALUES ('r', 'j', 'ga', '{}', 0, 10.0, 'running', 1.0, 2.0);
INSERT INTO runs VALUES ('empty', 'j', 'ga', '{}', 1, 10.0, 'running', 1.0, 0);
INSERT INTO trials VALUES ('r', 0, 'p', '1,2', 1.0, 3.0, true, 0.1), ('r', 1, 'p', '2,2', 0.5,
  1.0, true, 0.1),
  ('r', 2, 'p', '1,2', 1.0, 2.5, false, 0.0);
INSERT INTO selection VALUES ('r', '1,2', 0.25)
"""


_TO_VERSION_2 = """
ALTER TABLE runs ADD COLUMN told INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN scored INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN asked DOUBLE PRECISION NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN best DOUBLE PRECISION;
ALTER TABLE runs ADD COLUMN thought DOUBLE PRECISION;
ALTER TABLE runs ADD COLUMN notes TEXT;
ALTER TABLE jobs ADD COLUMN space TEXT;
UPDATE runs SET told = 3, scored = 2, asked = 2.5, best = 2.5 WHERE id = 'r';
CREATE TABLE claims (job VARCHAR(16) NOT NULL PRIMARY KEY, token VARCHAR(32) NOT NULL,
  holder VARCHAR(200) NOT NULL, heard DOUBLE PRECISION NOT NULL);
INSERT INTO claims VALUES ('gone', 't', 'process 1 on elsewhere', 1000.0);
UPDATE apportion_schema SET version = 2
"""


def make_old(url: str, version: int) -> None:
    statements = _VERSION_1 + (";" + _TO_VERSION_2 if version == 2 else "")
    execute(url, *statements.split(";"))


def execute(url: str, *statements: str) -> None:
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.mark.parametrize("version", [1, 2])
def test_a_store_of_an_older_version_is_brought_up_to_date(url: str, version: int) -> None:
    make_old(url, version)
    migrated = RunStore(url)
    assert migrated.known_scores("p", [((1, 2), 1.0), ((2, 2), 0.5), ((3, 3), 1.0)]) in (
        {((1, 2), 1.0): 3.0, ((2, 2), 0.5): 1.0},
        {((1, 2), 1.0): 2.5, ((2, 2), 0.5): 1.0},
    )
    assert migrated.selection("r") == {(1, 2): 0.25}
    migrated.add_selection("r", (1, 2), 0.75)
    assert migrated.selection("r") == {(1, 2): 0.25}
    assert migrated.holder("gone") is None
    assert counts(migrated) == (3, 2, 2.5, 2.5)
    assert (migrated.run("empty").told, migrated.run("empty").best) == (0, None)
    migrated.append("r", "p", 3, trial(9, 9, fitness=0.5))
    again = RunStore(url)
    assert counts(again) == (4, 3, 3.5, 0.5)
    assert len(again.trials("r")) == 4
    for opened in (migrated, again):
        opened.close()


def test_version_2_is_read_without_being_changed_and_version_1_is_not(url: str) -> None:
    make_old(url, 1)
    with pytest.raises(StoreError, match="version 1, which is not read as it is"):
        RunStore(url, reading=True)
    execute(url, *_TO_VERSION_2.split(";"))
    store = RunStore(url, reading=True)
    assert counts(store) == (3, 2, 2.5, 2.5)
    assert [t.candidate for t in store.trials("r")] == [(1, 2), (2, 2), (1, 2)]
    assert store.selection("r") == {(1, 2): 0.25}
    assert store.holder("gone") is None
    assert store._database.rows(sa.text("SELECT version FROM apportion_schema"))[0][0] == 2
    store.close()


def test_a_store_that_an_older_version_works_on_is_not_changed(url: str) -> None:
    make_old(url, 2)
    execute(url, f"UPDATE claims SET heard = {time.time()}")
    with pytest.raises(StoreError, match="an older version of apportion works on job gone"):
        RunStore(url)
    assert counts(RunStore(url, reading=True)) == (3, 2, 2.5, 2.5)


def test_long_and_odd_values_are_the_same_everywhere(store: RunStore) -> None:
    name, digits = "Läyer" * 60 + "'\"%s:;--[x]{}\\", "0123456789" * 40
    job = "j" * 500
    store.add_job(job, {"name": name, "nan": float("nan")}, {"layers": ["\x00", "\ud800"]})
    run = store.add_run(Run(name, job, name, {name: digits}, 2**63 - 1, float("inf")))
    assert (run.algorithm, run.parameters, run.seed) == (name, {name: digits}, 2**63 - 1)
    wide = tuple(range(20_000))
    other = (*wide[:-1], 7)
    for number, candidate in enumerate((wide, other, (10**40,))):
        told = StoredTrial(candidate, 1.0, float(number), True, 0.0)
        store.append(name, digits, number, told)
        store.add_selection(name, candidate, float("inf"))
    assert [t.candidate for t in store.trials(name)] == [wide, other, (10**40,)]
    asked = [(wide, 1.0), (other, 1.0), ((10**40,), 1.0), ((1,), 1.0)]
    known = dict(zip(asked, (0.0, 1.0, 2.0), strict=False))
    assert store.known_scores(digits, asked) == known
    assert set(store.selection(name)) == {wide, other, (10**40,)}
    store.set_state(name, "a state that is longer than others", 0.5)
    store.end(name, 0.5, {name: name})
    assert store.run(name).notes == {name: name}


def test_what_no_column_takes_is_refused_by_name(store: RunStore) -> None:
    nan = float("nan")
    for change, said in (
        (lambda: store.append("r", "p", 0, trial(1, fitness=nan)), "trial 0: fitness is not a num"),
        (lambda: store.append("r", "p", 0, trial(1, fidelity=nan)), "fidelity is not a number"),
        (lambda: store.append("r", "p", 0, StoredTrial((1,), 1.0, 1.0, True, nan)), "seconds is"),
        (lambda: store.add_selection("r", (1,), nan), "score is not a number"),
        (lambda: store.set_state("r", "failed", nan), "spent is not a number"),
        (lambda: store.end("r", nan, {}), "thought is not a number"),
        (lambda: store.add_run(Run("n", "j", "ga", {}, 0, nan)), "evaluations is not a number"),
        (lambda: store.add_run(Run("n", "j", "ga", {}, 2**63, 1.0)), "seed 9223372036854775808"),
        (lambda: store.add_run(Run("n", "j", "ga", {}, -1, 1.0)), "seed -1"),
        (lambda: store.add_run(Run("n" * 1001, "j", "ga", {}, 0, 1.0)), "1001 characters"),
    ):
        with pytest.raises(StoreError, match=said):
            change()
    assert counts(store) == (0, 0, 0.0, None)
    assert [run.id for run in store.runs()] == ["r"]


def test_only_a_row_that_is_there_already_is_taken_for_one(store: RunStore) -> None:
    with pytest.raises(StoreError) as no_job:  # not "it may be there already"
        store.add_run(Run("orphan", "no such job", "ga", {}, 0, 10.0))
    assert "foreign key" in str(no_job.value).lower()
    with pytest.raises(StoreError) as no_run:
        store.append("no such run", "p", 0, trial(1))
    assert "another process" not in str(no_run.value)


_WRITER = """
import sys
from apportion.db.runs.store import Run, RunStore, StoredTrial
store, name = RunStore(sys.argv[1]), sys.argv[2]
store.add_job("j", {})
store.add_run(Run(name, "j", "ga", {}, 0, 10.0))
for number in range(60):
    store.append(name, "p", number, StoredTrial((int(name), number), 1.0, float(number), True, 0.0))
"""


def test_processes_that_open_a_new_store_at_once_lose_and_mix_nothing(url: str) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, url, str(name)], env=os.environ)
        for name in range(4)
    ]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    store = RunStore(url)
    assert store.jobs() == ["j"]
    for name in range(4):
        assert [t.candidate for t in store.trials(str(name))] == [
            (name, number) for number in range(60)
        ]
        assert store.run(str(name)).told == 60
    store.close()


def test_a_server_that_restarts_loses_no_trial_and_counts_none_twice(
    server: postgres.PostgresServer,
) -> None:
    store = RunStore(server.make_database("restarted"))
    store.add_job("j", {})
    store.add_run(Run("r", "j", "ga", {}, 0, 10.0))
    over = threading.Event()

    def restart() -> None:
        for _ in range(3):
            time.sleep(0.3)
            server.stop("immediate")
            server.start()
        over.set()

    restarting = threading.Thread(target=restart)
    restarting.start()
    number = 0
    with store.claim("j"):
        while not over.is_set():
            store.append("r", "p", number, trial(number))
            number += 1
    restarting.join()
    assert [t.candidate[0] for t in store.trials("r")] == list(range(number))
    assert counts(store)[0] == number
    store.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that have an end have a near one."""
    limits = importlib.import_module("apportion.db.runs.server")
    monkeypatch.setattr(limits, "ANSWERED", 1.0)
    monkeypatch.setattr(limits, "CONNECTED", 2)  # libpq's least
    monkeypatch.setattr(sql, "PATIENCE", 3.0)


@pytest.mark.usefixtures("impatient")
def test_a_frozen_server_is_an_error_and_the_store_works_once_it_is_thawed(
    server: postgres.PostgresServer, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.make_database("frozen")
    store = RunStore(url)
    store.add_job("j", {})
    store.add_run(Run("r", "j", "ga", {}, 0, 10.0))
    store.append("r", "p", 0, trial(0))
    with server.frozen():
        with pytest.raises(StoreError, match="did not answer within 1 s|timeout expired"):
            store.trials("r")
        with pytest.raises(StoreError, match="did not answer within 1 s|timeout expired"):
            store.append("r", "p", 1, trial(1))
        with pytest.raises(StoreError, match="timeout expired"):
            RunStore(url)
        assert main(["runs", "--store", url]) == 1
        assert "timeout expired" in capsys.readouterr().err
    store.append("r", "p", 1, trial(1))
    assert [t.candidate for t in store.trials("r")] == [(0,), (1,)]
    store.close()


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_thawed_in_time_loses_no_trial_and_counts_none_twice(
    server: postgres.PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "PATIENCE", 120.0)
    store = RunStore(server.make_database("thawed"))
    store.add_job("j", {})
    store.add_run(Run("r", "j", "ga", {}, 0, 10.0))
    over = threading.Event()

    def freeze() -> None:
        for _ in range(2):
            time.sleep(0.3)
            with server.frozen():
                time.sleep(2.5)  # longer than an answer may take
        over.set()

    freezing = threading.Thread(target=freeze)
    freezing.start()
    number = 0
    with store.claim("j"):
        while not over.is_set():
            store.append("r", "p", number, trial(number))
            number += 1
    freezing.join()
    assert [t.candidate[0] for t in store.trials("r")] == list(range(number))
    assert counts(store)[0] == number > 10
    store.close()


def test_a_statement_that_waits_for_a_lock_ends_too(
    server: postgres.PostgresServer,
    impatient: None,  # noqa: ARG001
) -> None:
    store = RunStore(server.make_database("locked"))
    store.add_job("j", {})
    engine = sa.create_engine(store.url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE jobs")
        with pytest.raises(StoreError, match="statement timeout|did not answer"):
            store.add_job("k", {})
    store.add_job("k", {})
    store.close()
    engine.dispose()


def test_a_full_disk_is_an_error_and_what_was_committed_stays(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'runs.sqlite'}"
    process = subprocess.run(
        [sys.executable, "-c", _FILLER, url],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    written = int(process.stdout)
    assert "runs.sqlite" in process.stderr
    assert "full" in process.stderr or "disk I/O error" in process.stderr
    store = RunStore(url)
    assert len(store.trials("r")) == store.run("r").told == written > 10
    store.append("r", "p", written, trial(0))  # there is room again
    store.close()


_FILLER = """
import resource, sys
from apportion.compressors.errors import StoreError
from apportion.db.runs.store import Run, RunStore, StoredTrial
store = RunStore(sys.argv[1])
store.add_job("j", {})
store.add_run(Run("r", "j", "ga", {}, 0, 10.0))
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
number = 0
try:
    while True:
        store.append("r", "p", number, StoredTrial((number,) * 200, 1.0, 1.0, True, 0.0))
        number += 1
except StoreError as error:
    print(error, file=sys.stderr)
    print(number)
"""


def test_a_password_is_not_shown(server: postgres.PostgresServer) -> None:
    with pytest.raises(StoreError) as caught:
        RunStore(server.url.replace("tester@", "nobody:secret@"))
    assert "nobody:***@" in str(caught.value)
    assert "secret" not in str(caught.value)
