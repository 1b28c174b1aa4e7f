from pathlib import Path

import pytest
import sqlalchemy as sa

from compressors.errors import StoreError, UnknownNameError
from db.runs import Run, RunStore, StoredTrial


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(f"sqlite:///{tmp_path / 'runs.sqlite'}")
    store.add_job("j", {"budgets": {"flops": 0.5}})
    store.add_run(Run("r", "j", "ga", {"population": 4}, 0, 10.0))
    return store


def trial(*candidate: int, fitness: float = 1.0, fidelity: float = 1.0) -> StoredTrial:
    return StoredTrial(candidate, fidelity, fitness, True, 0.1)


def test_trials_come_back_in_order_and_exact(store: RunStore) -> None:
    told = [trial(2, 0, fitness=0.1 + 0.2), trial(0, 300, fitness=float("inf")), trial(1, 1, fidelity=0.25)]
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


def test_summary_counts_and_finds_the_best_at_full_fidelity(store: RunStore) -> None:
    assert store.summary("r") == (0, 0, None)
    store.append("r", "p", 0, trial(1, fitness=3.0))
    store.append("r", "p", 1, trial(2, fitness=1.0, fidelity=0.5))
    store.append("r", "p", 2, StoredTrial((3,), 1.0, 2.0, False, 0.0))
    assert store.summary("r") == (3, 2, 2.0)


def test_unknown_runs_name_the_nearest(store: RunStore) -> None:
    store.add_run(Run("spdy-s0-1a2b3c4d", "j", "spdy", {}, 0, 10.0))
    with pytest.raises(UnknownNameError, match="did you mean 'spdy-s0-1a2b3c4d'"):
        store.run("spdy-s1-1a2b3c4d")
    with pytest.raises(StoreError, match="no job 'x'"):
        store.job("x")


def test_stores_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="unable to open"):
        RunStore(f"sqlite:///{tmp_path / 'no' / 'folder.sqlite'}")
    (tmp_path / "text.sqlite").write_text("not a database, but long enough to be looked at as one " * 20)
    with pytest.raises(StoreError, match="not a database"):
        RunStore(f"sqlite:///{tmp_path / 'text.sqlite'}")
    with pytest.raises(StoreError):
        RunStore("no url at all")


def test_a_store_of_another_version_is_refused(store: RunStore) -> None:
    engine = sa.create_engine(store.url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE apportion_schema SET version = 99"))
    with pytest.raises(StoreError, match="version 99"):
        RunStore(store.url)
