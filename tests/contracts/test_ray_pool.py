"""What befalls Ray workers changes no result: real processes, several nodes on this machine."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from apportion.compressors.errors import ConfigurationError, EvaluationError
from apportion.evaluators.scoring.pool import Pool, Score

ray = pytest.importorskip("ray", reason="apportion[ray] is not installed")
from ray.cluster_utils import Cluster  # noqa: E402

from apportion.evaluators.cluster import memory  # noqa: E402
from apportion.evaluators.cluster import pool as pool_module  # noqa: E402
from apportion.evaluators.cluster.actor_pool import ActorPool  # noqa: E402
from apportion.evaluators.cluster.executor import RayExecutor  # noqa: E402
from apportion.evaluators.cluster.pool import RayPool  # noqa: E402
from tests.contracts.test_pool import within  # noqa: E402

STORE = 80 << 20


class Fragile:
    """Scores a candidate by its sum. -3 kills its process and -4 hangs, the first time; -5 kills
    its process always. Leaves a note of the node that it runs on."""

    def __init__(self, folder: Path, seconds: float = 0.02) -> None:
        self._folder, self._seconds = folder, seconds
        (folder / f"worker-{ray.get_runtime_context().get_node_id()}-{os.getpid()}").touch()

    def score(
        self, candidate: tuple[int, ...], fidelity: float = 1.0, bound: float = math.inf
    ) -> float:
        first = candidate[0]
        marker = self._folder / str(first)
        if first == -5 or (first in (-3, -4) and not marker.exists()):
            marker.touch()
            if first == -4:
                time.sleep(600)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self._seconds)
        return within(sum(candidate) * fidelity, bound)


class Unmade:
    def __init__(self) -> None:
        raise RuntimeError("no such weights")

    def score(
        self, candidate: tuple[int, ...], fidelity: float = 1.0, bound: float = math.inf
    ) -> float:
        return within(sum(candidate) * fidelity, bound)


def fitness(scores: Iterator[Score]) -> list[float]:
    return [score.fitness for score in scores]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without room for workers; the tests add nodes of one CPU. Stopped at the end, and only
    it."""
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False},
    )
    ray.init(address=made.address, log_to_driver=False)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=STORE)


def use_until(pool: Pool, folder: Path, nodes: int) -> None:
    """Give out work until workers ran on so many nodes: on a busy machine they take their time to
    start."""
    end = time.monotonic() + 120
    while len({note.name.split("-")[1] for note in folder.glob("worker-*")}) < nodes:
        assert time.monotonic() < end, "a node that joined is not used"
        fitness(pool.evaluate([((i,), 1.0) for i in range(20)]))


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    with ActorPool(2, {"CPU": 1}) as crew, RayPool(partial(Fragile, tmp_path), crew) as pool:
        requests = [((i,), 1.0) for i in (5, -3, 6, 7, 8)]
        assert fitness(pool.evaluate(requests)) == [5.0, -3.0, 6.0, 7.0, 8.0]
        assert pool.events == {"lost": 1}
        with pytest.raises(EvaluationError) as caught:
            fitness(pool.evaluate([((1,), 1.0), ((-5,), 1.0)]))
        assert caught.value.candidate == (-5,)
        assert pool.events == {"lost": 5}
        assert fitness(pool.evaluate([((9,), 1.0), ((10,), 0.5)])) == [9.0, 5.0]


def test_a_hung_worker_is_replaced(tmp_path: Path) -> None:
    with (
        ActorPool(2, {"CPU": 1}) as crew,
        RayPool(partial(Fragile, tmp_path), crew, deadline=2.0) as pool,
    ):
        requests = [((i,), 1.0) for i in (5, -4, 6, 7)]
        assert fitness(pool.evaluate(requests)) == [5.0, -4.0, 6.0, 7.0]
        assert pool.events == {"hung": 1}


class Starting(Fragile):
    """Hangs while it is made: the first `times` of them, counted by files."""

    def __init__(self, folder: Path, times: int) -> None:
        if len(list(folder.glob("hung-*"))) < times:
            (folder / f"hung-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        super().__init__(folder)


def test_a_worker_that_hangs_while_it_starts_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_TO_START", 4.0)
    requests = [((i,), 1.0) for i in (5, 6)]
    with ActorPool(1, {"CPU": 1}) as crew:
        with RayPool(partial(Starting, tmp_path, 1), crew, deadline=4.0) as pool:
            assert fitness(pool.evaluate(requests)) == [5.0, 6.0]
            assert pool.events == {"hung": 1}
        with (
            RayPool(partial(Starting, tmp_path, 99), crew, deadline=4.0) as pool,
            pytest.raises(EvaluationError, match="cannot be started.*\n.*had not started after 4"),
        ):
            fitness(pool.evaluate(requests))


def test_workers_that_cannot_be_made_fail_with_their_traceback() -> None:
    with (
        ActorPool(1, {"CPU": 1}) as crew,
        RayPool(Unmade, crew) as pool,
        pytest.raises(EvaluationError, match="no such weights"),
    ):
        fitness(pool.evaluate([((1,), 1.0)]))


@contextmanager
def one_cpu(**options: Any) -> Iterator[None]:
    """A Ray of this process's own."""
    ray.init(
        address="local",
        num_cpus=1,
        object_store_memory=STORE,
        include_dashboard=False,
        log_to_driver=False,
        **options,
    )
    try:
        yield
    finally:
        ray.shutdown()


def test_more_than_the_machine_has_is_refused(tmp_path: Path) -> None:
    with one_cpu():
        with pytest.raises(
            ConfigurationError, match="3 with 1 CPU each: the cluster has room for 1"
        ):
            ActorPool(3, {"CPU": 1})
        with (
            ActorPool(3, {"CPU": 1}, at_least=1) as crew,
            RayPool(partial(Fragile, tmp_path), crew) as pool,
        ):
            assert fitness(pool.evaluate([((2,), 1.0), ((3,), 1.0)])) == [2.0, 3.0]
        assert ray.is_initialized()  # a Ray that was there before stays


@pytest.mark.slow
def test_a_node_is_removed_and_another_one_joins(cluster: Any, tmp_path: Path) -> None:
    first, _ = add_node(cluster), add_node(cluster)
    cluster.wait_for_nodes()
    requests = [((i, 1), 1.0) for i in range(60)]
    with ActorPool(2, {"CPU": 1}) as crew, RayPool(partial(Fragile, tmp_path, 0.1), crew) as pool:
        scores = pool.evaluate(requests)
        found = [next(scores).fitness for _ in range(10)]
        cluster.remove_node(first, allow_graceful=False)
        found += [next(scores).fitness for _ in range(10)]
        add_node(cluster)
        found += fitness(scores)
        assert pool.events["lost"] >= 1
        assert found == [sum(candidate) for candidate, _ in requests]
        use_until(pool, tmp_path, nodes=3)  # the one that joined too


@pytest.mark.slow
def test_workers_that_join_during_a_run_are_used(cluster: Any, tmp_path: Path) -> None:
    add_node(cluster)
    cluster.wait_for_nodes()
    requests = [((i, 1), 1.0) for i in range(60)]
    with (
        ActorPool(3, {"CPU": 1}, at_least=1) as crew,
        RayPool(partial(Fragile, tmp_path, 0.1), crew) as pool,
    ):
        scores = pool.evaluate(requests)
        found = [next(scores).fitness for _ in range(10)]
        add_node(cluster)
        assert found + fitness(scores) == [sum(candidate) for candidate, _ in requests]
        use_until(pool, tmp_path, nodes=2)


def _process(_: int) -> int:
    time.sleep(0.2)
    return os.getpid()


def test_the_search_takes_over_the_processes_of_the_build(tmp_path: Path) -> None:
    with ActorPool(2, {"CPU": 1}) as crew:
        built = set(RayExecutor(crew)._map(_process, [(i,) for i in range(8)]))
        for _ in range(2):
            with RayPool(partial(Fragile, tmp_path), crew) as pool:
                assert fitness(pool.evaluate([((i,), 1.0) for i in range(8)])) == [
                    float(i) for i in range(8)
                ]
        scored = {int(path.name.rsplit("-", 1)[1]) for path in tmp_path.glob("worker-*")}
        assert scored == built
        assert len(built) == 2
    assert not ray.is_initialized()


class Hungry:
    """Its candidates take memory until Ray kills the worker: -1 twice, -2 always."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self._folder, self._megabytes = folder, megabytes

    def score(
        self, candidate: tuple[int, ...], fidelity: float = 1.0, bound: float = math.inf
    ) -> float:
        times = len(list(self._folder.glob("killed-*")))
        if candidate[0] == -2 or (candidate[0] == -1 and times < 2):
            (self._folder / f"killed-{times}").touch()
            hoard = bytearray(os.urandom(1 << 20)) * self._megabytes
            time.sleep(60)
            assert hoard
        return within(sum(candidate) * fidelity, bound)


@pytest.mark.slow  # what else runs on the machine counts
def test_workers_killed_for_memory_are_replaced_after_pauses_that_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ray's own memory monitor, with a limit 4 GB above what is in use."""
    fields = {
        line.split()[0]: int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
    }
    used = fields["MemTotal:"] - fields["MemAvailable:"]
    pauses: list[int] = []

    def pause(times: int) -> float:
        pauses.append(times)
        return 0.2 * times

    monkeypatch.setattr(memory, "pause", pause)
    monkeypatch.setattr(memory, "AT_MOST", 3)
    monitor = {
        "memory_usage_threshold": (used + (4 << 30)) / fields["MemTotal:"],
        "memory_monitor_refresh_ms": 100,
    }
    with (
        one_cpu(_system_config=monitor),
        ActorPool(1, {"CPU": 1}) as actors,
        RayPool(partial(Hungry, tmp_path, 6000), actors) as pool,
    ):
        assert fitness(pool.evaluate([((i,), 1.0) for i in (4, -1, 5)])) == [4.0, -1.0, 5.0]
        assert pool.events == {"killed": 2}
        assert set(pauses) == {1, 2}
        with pytest.raises(EvaluationError, match="want of memory, 3 times: .*workers.count"):
            fitness(pool.evaluate([((-2,), 1.0)]))


def test_the_kernels_kills_count_as_memory_and_others_do_not(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-3 kills its process once; that node says afterwards that a process was killed for want of
    memory."""
    add_node(cluster)
    monkeypatch.setattr(memory, "pause", lambda _: 0.2)
    with (
        ActorPool(1, {"CPU": 1}) as actors,
        closing(RayPool(partial(Fragile, tmp_path), actors)) as pool,
    ):
        assert fitness(pool.evaluate([((1,), 1.0)])) == [1.0]
        (slot,) = pool._slots
        assert slot.place is not None
        slot.place = replace(slot.place, kills=slot.place.kills - 1)
        assert fitness(pool.evaluate([((-3,), 1.0)])) == [-3.0]
        assert pool.events == {"killed": 1}
