"""What every pool must do. A new pool adds one line to POOLS."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from apportion.compressors.errors import ConfigurationError, EvaluationError
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.cluster.actor_pool import ActorPool
from apportion.evaluators.cluster.connection import Connection
from apportion.evaluators.cluster.pool import RayPool
from apportion.evaluators.scoring.pool import LazyPool, LocalPool, Pool, Request, Score, Scorer
from apportion.evaluators.scoring.spec import ScoringSpec
from apportion.evaluators.workloads.workload import Workload

Make = Callable[[], Scorer]


@contextmanager
def ray_pool(make: Make, count: int) -> Iterator[Pool]:
    with ActorPool(count, {"CPU": 1}) as crew, RayPool(make, crew) as pool:
        yield pool


POOLS: dict[str, Callable[[Make], AbstractContextManager[Pool]]] = {
    "local": lambda make: LocalPool(make, threads=1),
    "lazy": lambda make: LazyPool(lambda: LocalPool(make, threads=1)),
    "ray-1": lambda make: ray_pool(make, 1),
    "ray-2": lambda make: ray_pool(make, 2),
}


def within(fitness: float, bound: float) -> float:
    """As scorers may tell it: inf above the bound."""
    return fitness if fitness <= bound else math.inf


class Sum:
    """Scores a candidate by its sum; slower for smaller ones, so that results arrive out of order.
    -1 fails always; -2 once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def score(
        self, candidate: tuple[int, ...], fidelity: float = 1.0, bound: float = math.inf
    ) -> float:
        time.sleep(0.05 / (1 + max(0, candidate[0])))
        if candidate[0] == -1:
            raise RuntimeError("this candidate cannot be scored")
        if candidate[0] < -1:
            marker = self._folder / str(candidate[0])
            if not marker.exists():
                marker.touch()
                raise RuntimeError("only the first time")
        return within(sum(candidate) * fidelity, bound)


@pytest.fixture(params=["local", "ray-2"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pool]:
    if request.param.startswith("ray"):
        pytest.importorskip("ray", reason="apportion[ray] is not installed")
    with POOLS[request.param](partial(Sum, tmp_path)) as pool:
        yield pool


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """Started once for the pools of this file."""
    try:
        connection = Connection(2, 0)
        connection.open()
    except ConfigurationError:  # no Ray: its tests skip
        yield
        return
    yield
    connection.close()


def fitness(scores: Iterator[Score]) -> list[float]:
    return [score.fitness for score in scores]


def test_scores_come_in_asked_order(pool: Pool) -> None:
    requests = [((i % 7, i), 1.0 if i % 2 else 0.5) for i in range(20)]
    assert fitness(pool.evaluate(requests)) == [sum(c) * f for c, f in requests]
    assert fitness(pool.evaluate([])) == []
    assert fitness(pool.evaluate([((3,), 1.0)])) == [3.0]


class Wide(Sum):
    """Takes three requests at once; one that fails takes the others with it."""

    width = 3

    def score_many(self, requests: list[tuple[Any, ...]]) -> list[float]:
        assert len(requests) <= 3
        return [self.score(*request) for request in requests]


@pytest.mark.parametrize("name", ["local", "ray-2"])
def test_scorers_that_take_several_at_once(name: str, tmp_path: Path) -> None:
    requests = [((i % 7, i), 1.0 if i % 2 else 0.5) for i in range(17)]
    with POOLS[name](partial(Wide, tmp_path)) as pool:
        assert fitness(pool.evaluate(requests)) == [sum(c) * f for c, f in requests]
        assert fitness(pool.evaluate([((1,), 1.0), ((-2,), 1.0), ((2,), 1.0)])) == [1.0, -2.0, 2.0]
        with pytest.raises(EvaluationError, match="this candidate cannot be scored") as caught:
            fitness(pool.evaluate([((1,), 1.0), ((-1,), 1.0), ((2,), 1.0)]))
        assert caught.value.candidate == (-1,)


def test_a_lazy_pool_starts_with_the_first_request(tmp_path: Path) -> None:
    started: list[Pool] = []

    def start() -> Pool:
        started.append(LocalPool(partial(Sum, tmp_path), threads=1))
        return started[-1]

    with LazyPool(start) as pool:
        assert fitness(pool.evaluate([])) == []
        assert (pool.there, started) == (0, [])
        assert fitness(pool.evaluate([((1,), 1.0), ((3,), 1.0)])) == [1.0, 3.0]
        assert fitness(pool.evaluate([((2,), 1.0)])) == [2.0]
        assert (pool.there, len(started)) == (1, 1)
        started[0].events["lost"] += 1
        assert pool.events == {"lost": 1}


def test_neighbours_are_scored_one_after_the_other() -> None:
    scored: list[tuple[int, ...]] = []

    class Noting:
        def score(
            self, candidate: tuple[int, ...], fidelity: float = 1.0, bound: float = math.inf
        ) -> float:
            scored.append(candidate)
            return within(sum(candidate) * fidelity, bound)

    requests = [((i % 3, i), 1.0) for i in range(20)]
    with LocalPool(Noting, threads=1) as pool:
        assert fitness(pool.evaluate(requests)) == [sum(c) for c, _ in requests]
    assert scored[:16] == sorted(c for c, _ in requests[:16])
    assert scored[16:] == sorted(c for c, _ in requests[16:])


class Bounded:
    """Scores a candidate by its bound; 1000 where none reaches it."""

    def score(
        self, candidate: tuple[int, ...], fidelity: float = 1.0, bound: float = math.inf
    ) -> float:
        return min(bound, 1000.0) + sum(candidate) * fidelity


class WideBounded(Bounded):
    width = 3

    def score_many(self, requests: list[tuple[Any, ...]]) -> list[float]:
        return [self.score(*request) for request in requests]


@pytest.mark.parametrize("scorer", [Bounded, WideBounded])
@pytest.mark.parametrize("name", POOLS)
def test_a_requests_bound_reaches_the_scorer(name: str, scorer: Callable[[], Bounded]) -> None:
    if name.startswith("ray"):
        pytest.importorskip("ray", reason="apportion[ray] is not installed")
    requests: list[Request] = [((3,), 1.0, 0.25), ((1,), 0.5), ((2,), 0.5, 7.0), ((4,), 1.0)]
    with POOLS[name](scorer) as pool:
        assert fitness(pool.evaluate(requests)) == [3.25, 1000.5, 8.0, 1004.0]


def test_a_candidate_that_fails_once_is_tried_again(pool: Pool) -> None:
    assert fitness(pool.evaluate([((1,), 1.0), ((-2,), 1.0), ((2,), 1.0)])) == [1.0, -2.0, 2.0]


def test_a_candidate_that_fails_twice_fails_with_its_traceback(pool: Pool) -> None:
    with pytest.raises(EvaluationError, match="this candidate cannot be scored") as caught:
        fitness(pool.evaluate([((1,), 1.0), ((-1,), 1.0)]))
    assert caught.value.candidate == (-1,)
    assert fitness(pool.evaluate([((4,), 1.0)])) == [4.0]


class Elsewhere(ScoringSpec):
    """On a node that does not see the database's folder."""

    def sees_database(self) -> bool:
        return False


def test_local_and_ray_agree_to_the_bit(
    digits: Workload, database: LayerDatabase, own_cache: Path
) -> None:
    pytest.importorskip("ray", reason="apportion[ray] is not installed")
    given = (digits, database.path, database.fingerprint, "loss", "batch")
    make = ScoringSpec(*given)
    requests = [(tuple((i * j) % 5 for j in range(14)), 1.0) for i in range(12)]
    results = []
    for open_pool in POOLS.values():
        with open_pool(make) as pool:
            results.append(fitness(pool.evaluate(requests)))
    with POOLS["ray-2"](Elsewhere(*given)) as pool:
        results.append(fitness(pool.evaluate(requests)))
    assert all(result == results[0] for result in results)
    received = list((own_cache / "apportion/databases").iterdir())
    assert [folder.name for folder in received] == [database.fingerprint]
    LayerDatabase.open(received[0]).verify()
