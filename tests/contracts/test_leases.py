"""Who works on a job: on SQLite and PostgreSQL, with a clock and machines of the test's own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from apportion.compressors.errors import StoreError
from apportion.db.runs import lease as leases
from apportion.db.runs.lease import STALE, Lease, Surroundings, Watch
from apportion.db.runs.process import Process
from apportion.db.runs.store import Run, RunStore
from tests.contracts.test_run_store import server, store, trial, url

__all__ = ["server", "store", "url"]  # fixtures: a store with job j and run r, on both

HERE = Process.this()
ELSEWHERE = Process(1, "77", "another-boot", "pid:[1]", platform.node())  # of the same name


class Clock:
    """Passes only when somebody waits, and then `meanwhile` happens."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.time, self._meanwhile = 1000.0, meanwhile

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float) -> None:
        self.time += seconds
        self._meanwhile()


def at(process: Process, clock: Clock) -> Surroundings:
    return Surroundings(process, clock.now, clock.wait)


@pytest.fixture(autouse=True)
def no_beats_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 1e6)


@pytest.fixture
def other(url: str) -> Iterator[RunStore]:
    """Another process's view of the store."""
    store = RunStore(url)
    yield store
    store.close()


def test_a_job_is_claimed_once(store: RunStore, other: RunStore) -> None:
    with store.claim("j"):
        assert store.holder("j") == f"process {os.getpid()} on {platform.node()}"
        said = f"job j is being worked on by process {os.getpid()} on"
        with pytest.raises(StoreError, match=said), other.claim("j"):
            pass
        with store.claim("another"):
            pass
    assert store.holder("j") is None
    with store.claim("j"):
        pass


def test_a_holder_that_beats_keeps_its_lease_wherever_it_is(
    store: RunStore, other: RunStore
) -> None:
    """A container of the same name, with a process of the same number."""
    for holder in (ELSEWHERE, replace(HERE, namespace="pid:[2]"), replace(HERE, boot="b")):
        with store.claim("j", where=at(holder, Clock())) as held:
            clock = Clock(held.beat)
            with (
                pytest.raises(StoreError, match="is being worked on by process"),
                other.claim("j", where=at(HERE, clock)),
            ):
                pass
            assert clock.time - 1000.0 <= 2.0
            assert held.beat()


def test_a_silent_holder_is_waited_for_by_the_askers_own_clock(
    store: RunStore, other: RunStore
) -> None:
    told: list[tuple[str, int, int]] = []
    clock = Clock()
    with (
        pytest.raises(StoreError, match="job j was taken over by another process"),
        store.claim("j", where=at(ELSEWHERE, Clock())),
        other.claim("j", lambda *step: told.append(step), at(HERE, clock)),
    ):
        pass
    assert clock.time - 1000.0 == STALE
    assert told[-1][1:] == (int(STALE) - 1, int(STALE))
    assert "process 1 on" in told[-1][0]


def test_a_beat_just_before_the_end_of_the_wait_counts(store: RunStore, other: RunStore) -> None:
    with store.claim("j", where=at(ELSEWHERE, Clock())) as held:
        clock = Clock(lambda: held.beat() if clock.time > 1000.0 + STALE - 1.5 else None)
        with (
            pytest.raises(StoreError, match="being worked on"),
            other.claim("j", where=at(HERE, clock)),
        ):
            pass


def test_one_who_has_ended_here_is_taken_over_at_once(store: RunStore, other: RunStore) -> None:
    """A restarted container finds its own name and its own number, with another start."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for gone in (replace(HERE, number=process.pid), replace(HERE, started="1")):
        clock = Clock()
        with (  # noqa: PT012
            pytest.raises(StoreError, match="taken over"),
            store.claim("j", where=at(gone, Clock())),
        ):
            assert store.holder("j") is None
            with other.claim("j", where=at(HERE, clock)):
                assert other.holder("j") == str(HERE)
        assert clock.time == 1000.0


def test_a_zombie_has_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stat = f"/proc/{process.pid}/stat"
    with open(stat) as file:
        started = file.read().rpartition(")")[2].split()[19]
    other = replace(HERE, number=process.pid, started=started)
    assert HERE.knows(other) is True
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not waited for
    assert HERE.knows(other) is False
    process.wait()
    assert HERE.knows(other) is False
    assert HERE.knows(ELSEWHERE) is None
    assert HERE.knows(HERE) is True


def test_who_loses_its_lease_writes_nothing_more_and_says_so(
    store: RunStore, other: RunStore
) -> None:
    store.add_run(Run("r", "j", "ga", {"population": 4}, 0, 10.0))
    with (  # noqa: PT012
        pytest.raises(StoreError, match="taken over"),
        store.claim("j", where=at(ELSEWHERE, Clock())),
    ):
        store.append("r", "p", 0, trial(1))
        with other.claim("j", where=at(HERE, Clock())):
            other.run("r")
            other.append("r", "p", 1, trial(2))
            for write in (
                lambda: store.append("r", "p", 2, trial(3)),
                lambda: store.set_state("r", "failed", 1.0),
                lambda: store.end("r", 1.0, {}),
                lambda: store.add_selection("r", (1,), 1.0),
            ):
                with pytest.raises(StoreError, match="job j was taken over by another process"):
                    write()
            other.append("r", "p", 2, trial(4))
    assert [t.candidate for t in store.trials("r")] == [(1,), (2,), (4,)]
    assert store.run("r").state == "running"
    assert store.selection("r") == {}


def test_wall_clocks_count_for_nothing(
    store: RunStore, other: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.claim("j", where=at(ELSEWHERE, Clock())) as held:
        for shift in (-86_400.0, 120.0, 1e9):
            monkeypatch.setattr("time.time", lambda shift=shift: 1.7e9 + shift)
            with (
                pytest.raises(StoreError, match="being worked on"),
                other.claim("j", where=at(HERE, Clock(held.beat))),
            ):
                pass


def test_a_look_now_and_then_finds_out_who_died_elsewhere(store: RunStore) -> None:
    clock = Clock()
    watch = Watch(store._database, at(HERE, clock))
    assert watch.holder("j") is None
    lease = Lease(store._database, "j", where=at(ELSEWHERE, Clock()))
    with lease:
        assert watch.holder("j") == str(ELSEWHERE)
        clock.wait(STALE - 1)
        assert watch.holder("j") == str(ELSEWHERE)
        lease.beat()
        clock.wait(STALE - 1)
        assert watch.holder("j") == str(ELSEWHERE)
        clock.wait(STALE)
        assert watch.holder("j") is None
        lease.beat()
        assert watch.holder("j") == str(ELSEWHERE)
    assert watch.holder("j") is None


def test_the_holder_beats_on_its_own(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.01)
    beaten = threading.Event()
    whole = Lease.beat
    count = iter(range(100_000))

    def counted(self: Lease) -> bool:
        if next(count) == 3:
            beaten.set()
        return whole(self)

    monkeypatch.setattr(Lease, "beat", counted)
    with store.claim("j"):
        assert beaten.wait(60)
