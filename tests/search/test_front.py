"""The whole front from one job: optima at every point, resume, reuse, and no dominated point."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apportion.compressors.errors import (
    AlgorithmError,
    ConfigurationError,
    InfeasibleBudgetError,
    StoreError,
)
from apportion.db.runs.store import RunStore
from apportion.evaluators.scoring.pool import Pool
from apportion.search.algorithms.base import Trial
from apportion.search.algorithms.random import Random
from apportion.search.algorithms.registry import names
from apportion.search.jobs.job import TableJob
from apportion.search.report.front import front
from apportion.search.runs.front import prepare_points, run_points
from apportion.search.runs.loop import RunResult
from apportion.search.runs.pipeline import prepare, run_search
from apportion.search.runs.problem import Problem
from apportion.search.runs.table_problem import TableProblem
from apportion.search.space.decisions import Decisions
from tests.search.spaces import random_space
from tests.search.test_run import Counting

SPACE = random_space(5, layers=8, levels=6)
POINTS = (1.2, 1.5, 2.0)
Trials = dict[str, tuple[Any, ...]]


def job(algorithms: Sequence[Any], evaluations: int = 30, **search: Any) -> TableJob:
    return TableJob.model_validate(
        {
            "workload": {"table": "none"},
            "budgets": {"flops": [f"{point}x" for point in POINTS]},
            "search": {"algorithms": algorithms, "evaluations": evaluations, **search},
        }
    )


@dataclass(kw_only=True)
class Scored(TableProblem):
    """A fitness that is not additive."""

    scorer: Pool
    unseen: Pool | None = None

    def start_pool(self) -> Pool:
        return self.scorer

    def start_selection_pool(self) -> Pool | None:
        return self.unseen


class Scorer(Counting):
    def __init__(self, most: int = 10**9) -> None:
        super().__init__(SPACE, most)
        self.events = Counter[str]()


class Unseen(Scorer):
    """Ranks profiles in another way than the fitness."""

    def fitness(
        self, candidate: tuple[int, ...], fidelity: float, bound: float = float("inf")
    ) -> float:
        return super().fitness(candidate, fidelity, bound) + 0.05 * (sum(candidate) % 7)


def points_of(made: TableJob, scorer: Pool, unseen: Pool | None = None) -> list[Problem]:
    free = Decisions.free(SPACE)
    first: Problem = Scored(
        job=made, full_space=SPACE, decisions=free, key="key", id="", scorer=scorer, unseen=unseen
    )
    points: list[Problem] = []
    for own in made.points():
        points.append(first.at(own, [point.id for point in points]))
    return points


def trials(results: Sequence[Sequence[RunResult]]) -> Trials:
    return {r.run.id: (r.trials, r.pick) for own in results for r in own}


def test_the_optimum_of_an_additive_table_is_found_at_every_point(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "layer,level,seconds\n"
        + "".join(
            f"l{n},{level},{cost * (n + 2)}\n"
            for n in range(4)
            for level, cost in (("dense", 10), ("unstr-0.5", 6), ("unstr-0.75", 4), ("2:4", 5))
        )
    )
    made = TableJob.model_validate(
        {
            "workload": {"table": str(tmp_path / "t.csv")},
            "budgets": {"speedup": ["1.2x", "1.6x", "2x"]},
            "search": {"algorithms": ["milp", "dp", "ga"], "evaluations": 40, "seeds": [0]},
        }
    )
    points = prepare_points(made)
    results = run_points(points, RunStore(f"sqlite:///{tmp_path / 's.sqlite'}"))
    assert [point.bounds() for point in points] == [
        {"latency": pytest.approx(1 / times)} for times in (2, 1.6, 1.2)
    ]
    for problem, own in zip(points, results, strict=True):
        space = problem.full_space
        every = itertools.product(*(range(count) for count in space.counts))
        least = min(space.error(c) for c in every if space.feasible(c))
        assert [r.best.fitness for r in own] == [pytest.approx(least)] * 3
    rows = front(points, results)
    assert [row["point"] for row in rows] == ["speedup 2x", "speedup 1.6x", "speedup 1.2x"]
    assert all(row["error_gap"] == pytest.approx(0) for row in rows)


@pytest.mark.parametrize("name", names())
def test_no_point_is_worse_than_a_tighter_one(name: str, tmp_path: Path) -> None:
    points = points_of(job([name], 12, seeds=[0, 1]), Scorer(), Unseen())
    results = run_points(points, RunStore(f"sqlite:///{tmp_path / 's.sqlite'}"))
    for tighter, looser in itertools.pairwise(results):
        for before, after in zip(tighter, looser, strict=True):
            assert after.best.fitness <= before.best.fitness
            assert before.score is not None
            assert after.score is not None
            assert after.score <= before.score
            assert after.run.notes["tighter"]["run"] == before.run.id
    for problem, own in zip(points, results, strict=True):
        assert all(problem.full_space.feasible(r.pick.candidate) for r in own)
        assert all(r.evaluations <= 12 for r in own)
    unseen = [row["unseen"] for row in front(points, results)]
    assert unseen == sorted(unseen, reverse=True)


@pytest.mark.parametrize("most", [1, 20, 35, 60])
@pytest.mark.parametrize("name", ["evopress", "surrogate"])
def test_stopped_anywhere_it_ends_like_one_that_was_not(
    name: str, most: int, tmp_path: Path
) -> None:
    made = job([name, "ga"], 20)
    whole = run_points(
        points_of(made, Scorer(), Unseen()),
        RunStore(f"sqlite:///{tmp_path / 'whole.sqlite'}"),
    )
    store = RunStore(f"sqlite:///{tmp_path / 'stopped.sqlite'}")
    stopped = Scorer(most)
    with pytest.raises(KeyboardInterrupt):
        run_points(points_of(made, stopped, Unseen()), store)
    rest = Scorer()
    resumed = run_points(points_of(made, rest, Unseen()), store)
    assert trials(resumed) == trials(whole)
    asked = {(t.candidate, t.fidelity) for own in whole for r in own for t in r.trials}
    assert len(stopped.scored) + len(rest.scored) == len(asked)


def test_what_one_point_scored_is_not_paid_for_again(tmp_path: Path) -> None:
    made, together = job(["ga", "surrogate"], 30), Scorer()
    points = points_of(made, together)
    run_points(points, RunStore(f"sqlite:///{tmp_path / 'front.sqlite'}"))
    apart = Scorer()
    for number, own in enumerate(made.points()):
        (one,) = points_of(own, apart)
        run_search(one, RunStore(f"sqlite:///{tmp_path / f'{number}.sqlite'}"))
    assert len(together.scored) == len(set(together.scored))
    assert len(together.scored) < len(apart.scored)


def test_the_tightest_point_is_the_job_with_that_budget_alone(tmp_path: Path) -> None:
    made = job(["ga"])
    points = points_of(made, Scorer())
    (alone,) = points_of(made.points()[0], Scorer())
    assert points[0].id == alone.id
    # The others begin from tighter ones, which makes them other jobs.
    ids = {point.id for point in points}
    ids |= {points_of(own, Scorer())[0].id for own in made.points()[1:]}
    assert len(ids) == 5
    other = points_of(job(["ga"], picks=3), Scorer())
    assert [a.id == b.id for a, b in zip(points, other, strict=True)] == [True, False, False]
    store = RunStore(f"sqlite:///{tmp_path / 's.sqlite'}")
    results = run_points(points, store)
    assert run_search(alone, store)[0].trials == results[0][0].trials
    assert store.job(points[2].id)["budgets"] == {"flops": "1.2x"}


class Stubborn(Random):
    """Asks for nothing but random profiles."""

    def ask(self) -> list[Trial]:
        return self.propose()


def test_an_algorithm_that_leaves_out_what_it_begins_with_is_refused(tmp_path: Path) -> None:
    made = job([f"{__name__}:Stubborn"], 4, seeds=list(range(6)))
    with pytest.raises(AlgorithmError, match="did not ask for the profiles that a front begins"):
        run_points(points_of(made, Scorer()), RunStore(f"sqlite:///{tmp_path / 's.sqlite'}"))


def test_a_point_out_of_reach_is_named_with_what_can_be_reached(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "layer,level,seconds\na,dense,10\na,2:4,6\nb,dense,10\nb,2:4,6\n"
    )
    content = {
        "workload": {"table": str(tmp_path / "t.csv")},
        "budgets": {"speedup": ["1.2x", "3x"]},
    }
    with pytest.raises(InfeasibleBudgetError, match=r"point speedup 3x .* reach 0\.6 at") as raised:
        prepare_points(TableJob.model_validate(content))
    assert raised.value.least == pytest.approx(0.6)
    with pytest.raises(ConfigurationError, match="a list of points is a front"):
        prepare(TableJob.model_validate(content))


def test_a_pick_that_the_run_does_not_have_is_an_altered_store(tmp_path: Path) -> None:
    points = points_of(job(["ga"], 8), Scorer(), Unseen())
    store = RunStore(f"sqlite:///{tmp_path / 's.sqlite'}")
    results = run_points(points, store)
    run = results[2][0].run
    store.end(run.id, 0.0, {"tighter": {"run": "x", "pick": [9] * 8}})
    with pytest.raises(StoreError, match="none of its trials"):
        run_points(points, store)
