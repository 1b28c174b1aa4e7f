"""The final pick among a run's best, on images that the search did not see."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from apportion.db.runs.store import Run, RunStore, StoredTrial
from apportion.evaluators.scoring.pool import Pool, Request, Score
from apportion.search.runs.loop import result_of
from apportion.search.runs.selection import select, shortlist

RUN = Run("spdy-s0-00000000", "job", "spdy", {}, 0, 100.0, "finished")


class Held(Pool):
    """Scores a candidate by its first index: lower is better."""

    def __init__(self, broken_after: int = 1000) -> None:
        self.scored: list[tuple[int, ...]] = []
        self._left = broken_after

    def evaluate(self, requests: Sequence[Request]) -> Iterator[Score]:
        for candidate, *_ in requests:
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            self.scored.append(candidate)
            yield Score(float(candidate[0]), 0.0)

    def close(self) -> None:
        pass


def trials() -> list[StoredTrial]:
    """Fitness 1.000, 1.001, ... 1.059; the first index falls as the fitness rises; each candidate
    is there twice."""
    once = [StoredTrial((60 - i, i), 1.0, 1 + i / 1000, True, 0.0) for i in range(60)]
    return [*reversed(once), *once, StoredTrial((0, 0), 0.25, 0.5, True, 0.0)]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(f"sqlite:///{tmp_path / 'runs.sqlite'}")
    store.add_job("job", {})
    store.add_run(RUN)
    return store


def test_the_shortlist_spreads_over_all_that_are_within_two_percent() -> None:
    result = result_of(RUN, trials())
    chosen = [trial.candidate for trial in shortlist(result, 4)]
    assert chosen == [(60, 0), (54, 6), (47, 13), (40, 20)]
    assert len(shortlist(result, 100)) == 21
    assert [trial.candidate for trial in shortlist(result, 1)] == [(60, 0)]


def test_the_pick_has_the_lowest_score_on_the_selection_images(store: RunStore) -> None:
    result = result_of(RUN, trials())
    assert result.pick == result.best
    picked = select(result, 4, Held(), store)
    assert (picked.pick.candidate, picked.pick.fitness, picked.best) == (
        (40, 20),
        1.02,
        result.best,
    )


def test_a_pick_that_was_stopped_goes_on(store: RunStore) -> None:
    result = result_of(RUN, trials())
    with pytest.raises(KeyboardInterrupt):
        select(result, 4, Held(broken_after=2), store)
    pool = Held()
    assert select(result, 4, pool, store).pick.candidate == (40, 20)
    assert pool.scored == [(47, 13), (40, 20)]
    assert select(result, 4, Held(broken_after=0), store).pick.candidate == (40, 20)


def test_a_negative_fitness_has_neighbours_too() -> None:
    result = result_of(RUN, [StoredTrial((i,), 1.0, -1 + i / 100, True, 0.0) for i in range(10)])
    assert len(shortlist(result, 16)) == 3
