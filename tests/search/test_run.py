import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from apportion.compressors.errors import EvaluationError, StoreError
from apportion.db.runs.store import Run, RunStore, StoredTrial
from apportion.evaluators.scoring.pool import Pool, Request, Score
from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.registry import create, names
from apportion.search.runs.loop import RunResult, search
from apportion.search.space.repair import repair
from apportion.search.space.space import SearchSpace
from tests.contracts.test_algorithm import fitness
from tests.search.spaces import random_space

SPACE = random_space(5, layers=8, levels=6)


class Counting(Pool):
    """Scores with the test's fitness; counts; stops like a killed process after `most` scores."""

    def __init__(self, space: SearchSpace = SPACE, most: int = 10**9) -> None:
        self.space, self.most, self.scored = space, most, list[tuple[int, ...]]()

    def evaluate(self, requests: Sequence[Request]) -> Iterator[Score]:
        for candidate, fidelity, *bound in requests:
            if len(self.scored) == self.most:
                raise KeyboardInterrupt
            self.scored.append(candidate)
            yield Score(self.fitness(candidate, fidelity, *bound), 0.01)

    def fitness(
        self,
        candidate: tuple[int, ...],
        fidelity: float,
        bound: float = math.inf,  # noqa: ARG002
    ) -> float:
        return fitness(self.space, candidate) + (1 - fidelity)

    def close(self) -> None:
        pass


class Stopping(Counting):
    """Scores inf what is above its bound, as a scorer that stops early does."""

    stopped = 0

    def fitness(
        self, candidate: tuple[int, ...], fidelity: float, bound: float = math.inf
    ) -> float:
        whole = super().fitness(candidate, fidelity)
        self.stopped += whole > bound
        return math.inf if whole > bound else whole


def store_at(path: Path) -> RunStore:
    store = RunStore(f"sqlite:///{path}")
    store.add_job("j", {})
    return store


def start(
    store: RunStore,
    pool: Pool,
    name: str,
    seed: int = 0,
    evaluations: float = 60,
    problem: str = "p",
) -> RunResult:
    run = store.add_run(Run(f"{name}-{seed}", "j", name, {}, seed, evaluations))
    algorithm = create(name, SPACE, np.random.default_rng(seed), evaluations)
    return search(algorithm, SPACE, pool, store, run, problem)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("most", [1, 2, 7, 33])
def test_a_run_stopped_anywhere_ends_like_one_that_was_not(
    tmp_path: Path, name: str, most: int
) -> None:
    whole = start(store_at(tmp_path / "whole.sqlite"), Counting(), name)
    pool = Counting(most=most)
    try:
        start(store_at(tmp_path / "stopped.sqlite"), pool, name)
    except KeyboardInterrupt:
        assert store_at(tmp_path / "stopped.sqlite").run(f"{name}-0").state == "cancelled"
    rest = Counting()
    resumed = start(store_at(tmp_path / "stopped.sqlite"), rest, name)
    assert resumed.trials == whole.trials
    assert resumed.best == whole.best
    assert resumed.run.state == "finished"
    assert len(pool.scored) + len(rest.scored) == len(
        {(t.candidate, t.fidelity) for t in whole.trials}
    )


def test_no_candidate_is_scored_twice_across_algorithms_and_seeds(tmp_path: Path) -> None:
    store, pool = store_at(tmp_path / "s.sqlite"), Counting()
    results = [start(store, pool, name, seed) for name in names() for seed in (0, 1)]
    asked = [t for result in results for t in result.trials]
    assert len(pool.scored) == len({(t.candidate, t.fidelity) for t in asked})
    assert sum(t.evaluated for t in asked) == len(pool.scored)
    assert all(t.fitness == fitness(SPACE, t.candidate) + (1 - t.fidelity) for t in asked)


@pytest.mark.parametrize("name", ["local", "evopress", "race"])
def test_stopping_at_the_bound_changes_no_course(tmp_path: Path, name: str) -> None:
    whole = start(store_at(tmp_path / "whole.sqlite"), Counting(), name, evaluations=120)
    store, pool = store_at(tmp_path / "stopped.sqlite"), Stopping()
    stopped = start(store, pool, name, evaluations=120)
    assert pool.stopped > 2
    assert [t.candidate for t in stopped.trials] == [t.candidate for t in whole.trials]
    assert stopped.best == whole.best
    scores = [(t.candidate, t.fidelity) for t in stopped.trials]
    known = store.known_scores("p", scores)
    assert all(
        math.isfinite(fitness) for fitness in known.values()
    )  # what was stopped is nobody else's answer
    assert name == "race" or len(known) < len(
        set(scores)
    )  # there another algorithm may ask for it again


def test_other_problems_share_nothing(tmp_path: Path) -> None:
    store, pool = store_at(tmp_path / "s.sqlite"), Counting()
    store.add_run(Run("random-0", "j", "random", {}, 0, 60))
    first = start(store, pool, "random", 0)
    before = len(pool.scored)
    start(store, pool, "random", 1, problem="q")
    assert len(pool.scored) - before == len(first.trials)


def test_a_finished_run_is_only_read(tmp_path: Path) -> None:
    store = store_at(tmp_path / "s.sqlite")
    first = start(store, Counting(), "ga")
    assert start(store, Counting(most=0), "ga").trials == first.trials


@pytest.mark.parametrize("evaluations", [1, 2, 5, 29])
def test_the_evaluation_budget_is_kept(tmp_path: Path, evaluations: int) -> None:
    for name in names():
        result = start(
            store_at(tmp_path / f"{name}.sqlite"), Counting(), name, evaluations=evaluations
        )
        assert result.evaluations <= evaluations
        if name not in ("dp", "greedy", "milp"):  # these ask for one profile
            assert (
                result.evaluations > evaluations - 1
            )  # the last part may be less than the least that is asked


class Partial(Algorithm):
    """Asks on a quarter of the data first, and in full what did best."""

    def propose(self) -> list[Trial]:
        drawn = [
            repair(self.space, self.rng.integers(self.space.counts).tolist()) for _ in range(8)
        ]
        return [Trial(c, 0.25) for c in drawn] + [Trial(drawn[0])]


def test_fractions_cost_their_fraction(tmp_path: Path) -> None:
    result = start(
        store_at(tmp_path / "s.sqlite"), Counting(), "tests.search.test_run:Partial", evaluations=11
    )
    assert result.evaluations == 11
    assert {t.fidelity for t in result.trials} == {0.25, 1.0}
    assert result.best.fidelity == 1.0
    assert result.best.fitness == min(t.fitness for t in result.trials if t.fidelity == 1.0)


def test_a_log_of_another_algorithm_is_refused(tmp_path: Path) -> None:
    store = store_at(tmp_path / "s.sqlite")
    store.add_run(Run("ga-0", "j", "ga", {}, 0, 60))
    store.append("ga-0", "p", 0, StoredTrial((5,) * 8, 1.0, 1.0, True, 0.1))
    with pytest.raises(
        StoreError, match="run 'ga-0': trial 0 in the log is not what 'ga' asks now"
    ):
        start(store, Counting(), "ga")


def test_a_failed_candidate_fails_the_run_and_keeps_the_rest(tmp_path: Path) -> None:
    class Failing(Counting):
        def evaluate(self, requests: Sequence[Request]) -> Iterator[Score]:
            for i, score in enumerate(super().evaluate(requests)):
                if len(self.scored) > 10:
                    raise EvaluationError(requests[i][0], "broken")
                yield score

    store = store_at(tmp_path / "s.sqlite")
    with pytest.raises(EvaluationError, match="broken"):
        start(store, Failing(), "random")
    assert store.run("random-0").state == "failed"
    assert len(store.trials("random-0")) == 10
    assert start(store, Counting(), "random").run.state == "finished"
