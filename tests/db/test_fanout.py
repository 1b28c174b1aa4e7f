"""Builds on Ray workers: the same database to the bit as in one process."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.compressors.elimination import work
from apportion.compressors.errors import LayerError, WorkersError
from apportion.db.layers.executor import LocalExecutor
from apportion.evaluators.cluster import memory
from apportion.evaluators.cluster.actor_pool import ActorPool
from apportion.evaluators.cluster.executor import RayExecutor
from tests.db.test_build import make, net

ray = pytest.importorskip("ray")
LEVELS = ("dense", "unstr-0.50", "unstr-0.90", "w4a8", "unstr-0.50+w4", "1:2", "block2-0.50")


def test_two_workers_build_the_same_database(tmp_path: Path) -> None:
    here = make(tmp_path / "here", levels=LEVELS)
    with ActorPool(2, {"CPU": 1}) as crew:
        there = make(tmp_path / "there", levels=LEVELS, executor=lambda: RayExecutor(crew))
    assert there.fingerprint == here.fingerprint
    assert not ray.is_initialized()


def test_a_layer_that_outweighs_the_others_is_shared_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_TASK_FLOPS", 0.0)  # 8 rows a task
    wide = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(16, 64), torch.nn.Linear(64, 2)
    ).eval()
    here = make(tmp_path / "here", wide, LEVELS)
    mapped: list[int] = []

    class Watched(RayExecutor):
        def _map(self, function: Any, tasks: Any) -> Iterator[Any]:
            mapped.append(len(tasks))
            return super()._map(function, tasks)

    with ActorPool(2, {"CPU": 1}) as crew:
        there = make(tmp_path / "there", wide, LEVELS, executor=lambda: Watched(crew))
    assert there.fingerprint == here.fingerprint
    assert mapped


def test_a_layer_that_cannot_be_made_is_the_same_error_on_a_worker(tmp_path: Path) -> None:
    model = net()
    with torch.no_grad():
        model.get_parameter("5.weight")[0, 0] = torch.nan
    with ActorPool(2, {"CPU": 1}) as crew:
        for executor in (LocalExecutor, lambda: RayExecutor(crew)):
            with pytest.raises(LayerError, match=r"layer '5': its weights hold NaN"):
                make(tmp_path / "nan", model, executor=executor)
    assert not ray.is_initialized()


def test_work_of_a_worker_that_hangs_is_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def hung_once(number: int) -> int:
        marker = tmp_path / f"hung-{number}"
        if number == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return number

    def always(_number: int) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    with ActorPool(2, {"CPU": 1}) as crew:
        executor = RayExecutor(crew, deadline=3.0)
        assert list(executor._map(hung_once, [(i,) for i in range(6)])) == list(range(6))
        assert "a worker hung; it is replaced" in caplog.text
        with pytest.raises(WorkersError, match="a worker hung, 4 times"):
            list(executor._map(always, [(0,)]))


def test_an_idle_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    def process(number: int) -> int:
        (tmp_path / f"pid-{os.getpid()}").touch()
        return number

    with ActorPool(1, {"CPU": 1}) as crew:
        executor = RayExecutor(crew, deadline=3.0)
        assert list(executor._map(process, [(1,)])) == [1]
        (idle,) = tmp_path.glob("pid-*")
        os.kill(int(idle.name.removeprefix("pid-")), signal.SIGSTOP)
        assert list(executor._map(process, [(2,)])) == [2]
    assert len(list(tmp_path.glob("pid-*"))) == 2


def test_work_of_a_worker_that_dies_is_done_again(tmp_path: Path) -> None:
    def lost_once(number: int) -> int:
        marker = tmp_path / f"lost-{number}"
        if number == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with ActorPool(2, {"CPU": 1}) as crew:
        assert list(RayExecutor(crew)._map(lost_once, [(i,) for i in range(6)])) == list(range(6))
    assert (tmp_path / "lost-3").exists()


def test_work_of_a_worker_killed_for_memory_is_done_again_after_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Ray or the kernel say of it: tests/contracts/test_ray_pool.py."""
    pauses: list[int] = []

    def pause(times: int) -> float:
        pauses.append(times)
        return 0.1

    def lost_twice(number: int) -> int:
        times = len(list(tmp_path.glob("lost-*")))
        if number == 3 and times < 2:
            (tmp_path / f"lost-{times}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def always(_number: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(memory, "was_killed", lambda *_: True)
    monkeypatch.setattr(memory, "pause", pause)
    monkeypatch.setattr(memory, "AT_MOST", 3)
    with ActorPool(1, {"CPU": 1}) as actors:
        executor = RayExecutor(actors)
        assert list(executor._map(lost_twice, [(i,) for i in range(5)])) == list(range(5))
        assert pauses == [1, 2]
        with pytest.raises(WorkersError, match="want of memory, 3 times: .*workers.count"):
            list(executor._map(always, [(0,)]))
