"""What every run store must do: on SQLite, and on a PostgreSQL server."""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from apportion.compressors.errors import StoreError, UnknownNameError
from apportion.db.runs.lease import STALE
from apportion.db.runs.schema import CLAIMS
from apportion.db.runs.store import Run, RunStore, StoredTrial
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
  ('r', 2, 'p', '1,2', 1.0, 2.5, false, 0.0)
"""


def test_a_store_of_version_1_is_brought_up_to_date(url: str) -> None:
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        for statement in _VERSION_1.split(";"):
            connection.exec_driver_sql(statement)
    engine.dispose()
    migrated = RunStore(url)
    assert counts(migrated) == (3, 2, 2.5, 2.5)
    assert (migrated.run("empty").told, migrated.run("empty").best) == (0, None)
    migrated.append("r", "p", 3, trial(9, 9, fitness=0.5))
    again = RunStore(url)
    assert counts(again) == (4, 3, 3.5, 0.5)
    assert len(again.trials("r")) == 4
    for opened in (migrated, again):
        opened.close()


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


def test_a_job_is_claimed_once(store: RunStore) -> None:
    with store.claim("j"):
        assert store.holder("j") == f"process {os.getpid()} on {platform.node()}"
        with (
            pytest.raises(
                StoreError, match=f"job j is being worked on by process {os.getpid()} on"
            ),
            RunStore(store.url).claim("j"),
        ):
            pass
        with store.claim("another"):
            pass
    assert store.holder("j") is None
    with store.claim("j"):
        pass


@pytest.mark.parametrize(
    ("held_by", "heard"),
    [
        (lambda: f"process {_ended()} on {platform.node()}", 0.0),
        (lambda: "process 1 on elsewhere", -STALE - 1),
    ],
    ids=["ended", "silent"],
)
def test_the_claim_of_one_who_is_gone_is_taken_over(
    store: RunStore, held_by: Callable[[], str], heard: float
) -> None:
    row = {"job": "j", "token": "t", "holder": held_by(), "heard": store._database.now() + heard}
    store._database.write(CLAIMS.insert().values(**row))
    assert store.holder("j") is None
    with store.claim("j"):
        assert store.holder("j") is not None


def _ended() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


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
