"""What every search algorithm must do: every registered algorithm runs this suite."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.registry import create, names
from apportion.search.space.additive import optimum
from apportion.search.space.repair import uniform
from apportion.search.space.space import SearchSpace
from tests.search.spaces import DEGENERATE, brute_force, coupled_space, make, random_space

ROOT = Path(__file__).parents[2]
SOLVERS = ("dp", "greedy", "milp")  # one profile, whatever the seed
GOLDEN = ROOT / "tests" / "golden" / "algorithms.json"


def fitness(space: SearchSpace, candidate: tuple[int, ...]) -> float:
    """The additive error and a fixed pairwise interaction of neighbouring layers."""
    pairs = sum((a + 1) * (b + 2) % 7 for a, b in itertools.pairwise(candidate))
    return space.error(candidate) + 0.05 * pairs


def drive(
    algorithm: Algorithm,
    evaluations: int,
    score: Callable[[SearchSpace, tuple[int, ...]], float] = fitness,
    until: float = -np.inf,
) -> list[Trial]:
    """Ask and tell as the run loop does, until a fitness is `until` or less; every candidate must
    be feasible."""
    told: list[Trial] = []
    while len(told) < evaluations and (asked := algorithm.ask()):
        assert all(algorithm.space.feasible(trial.candidate) for trial in asked)
        assert all(0 < trial.fidelity <= 1 for trial in asked)
        ended = len(told) + len(asked) > evaluations
        assert all(isinstance(index, int) for trial in asked for index in trial.candidate)
        batch = [Trial(t.candidate, t.fidelity, score(algorithm.space, t.candidate)) for t in asked]
        told += batch[: evaluations - len(told)]
        if ended or min(t.fitness or 0.0 for t in told) <= until:
            break
        before = list(batch)
        algorithm.tell(batch)
        assert batch == before
    return told


def run(
    name: str, space: SearchSpace, seed: int = 0, evaluations: int = 120, **parameters: object
) -> list[Trial]:
    return drive(
        create(name, space, np.random.default_rng(seed), evaluations, parameters), evaluations
    )


def least(told: list[Trial]) -> float:
    return min(trial.fitness for trial in told if trial.fitness is not None)


@pytest.mark.parametrize("name", names())
def test_it_starts_from_the_uniform_and_the_additive_optimum(name: str) -> None:
    space = random_space(3, layers=8, levels=6)
    told = run(name, space)
    assert [t.candidate for t in told[:2]] == [uniform(space), optimum(space)]
    assert least(told) <= min(fitness(space, uniform(space)), fitness(space, optimum(space)))


@pytest.mark.parametrize("metrics", [1, 2])
@pytest.mark.parametrize("name", names())
def test_cold_starts_are_feasible_too(name: str, metrics: int) -> None:
    assert run(name, random_space(4, layers=8, levels=6, metrics=metrics), cold=True)


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.6])
@pytest.mark.parametrize("name", names())
def test_budgets_of_costs_in_pairs_hold(name: str, share: float, cold: bool) -> None:
    """`drive` checks every candidate; the totals are checked anew here, and the same seed asks the
    same."""
    space = coupled_space(8, layers=8, levels=6, metrics=2, share=share)
    told = run(name, space, seed=2, evaluations=30, cold=cold)
    assert told
    for trial in told:
        for metric, bound in space.budgets.items():
            assert space.total(metric, trial.candidate) <= bound * (1 + 1e-12)
    assert run(name, space, seed=2, evaluations=30, cold=cold) == told
    if not cold:
        assert optimum(space) in [trial.candidate for trial in told]


@pytest.mark.parametrize("metrics", [1, 2])
@pytest.mark.parametrize("name", [name for name in names() if name not in (*SOLVERS, "random")])
def test_it_finds_the_optimum_of_small_spaces_with_pairs(name: str, metrics: int) -> None:
    found = 0
    for seed in range(5):
        space = coupled_space(100 + seed, metrics=metrics, share=0.5)
        best = min(fitness(space, c) for c in np.ndindex(*space.counts) if space.feasible(c))
        algorithm = create(name, space, np.random.default_rng(seed), 256, {})
        found += least(drive(algorithm, 256, fitness, best + 1e-12)) <= best + 1e-12
    assert found >= 4


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("name", names())
def test_degenerate_spaces_end_at_or_above_their_optimum(name: str, kind: str) -> None:
    space = DEGENERATE[kind]
    told = run(name, space, evaluations=40)
    assert told
    assert min(space.error(t.candidate) for t in told) == pytest.approx(brute_force(space)[1])


@pytest.mark.parametrize("name", names())
def test_the_same_seed_gives_the_same_trials_in_any_process(name: str) -> None:
    space = random_space(5, layers=8, levels=6)
    here = [[list(t.candidate), t.fitness] for t in run(name, space, seed=7)]
    program = (
        "import json, sys; sys.path.insert(0, '.')\n"
        "from tests.contracts.test_algorithm import run\n"
        "from tests.search.spaces import random_space\n"
        f"told = run({name!r}, random_space(5, layers=8, levels=6), seed=7)\n"
        "print(json.dumps([[list(t.candidate), t.fitness] for t in told]))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == here


@pytest.mark.parametrize("name", [name for name in names() if name not in SOLVERS])
def test_another_seed_gives_other_trials(name: str) -> None:
    space = random_space(5, layers=8, levels=6)
    assert [t.candidate for t in run(name, space, seed=1)] != [
        t.candidate for t in run(name, space, seed=2)
    ]


@pytest.mark.parametrize("interacting", [True, False])
@pytest.mark.parametrize("metrics", [1, 2])
@pytest.mark.parametrize("name", [name for name in names() if name not in (*SOLVERS, "random")])
def test_it_finds_the_optimum_of_small_spaces(name: str, metrics: int, interacting: bool) -> None:
    """5 layers x 4 levels: at least 9 of 10 seeds, within a quarter of the space's 1,024
    evaluations. Additive spaces are begun cold: their optimum is a starting profile."""
    found = 0
    for seed in range(10):
        space = random_space(100 + seed, metrics=metrics)
        score = fitness if interacting else SearchSpace.error
        best = min(score(space, c) for c in np.ndindex(*space.counts) if space.feasible(c))
        algorithm = create(name, space, np.random.default_rng(seed), 256, {"cold": not interacting})
        found += least(drive(algorithm, 256, score, best + 1e-12)) <= best + 1e-12
    assert found >= 9


@pytest.mark.parametrize("name", names())
def test_golden_results(name: str) -> None:
    """Pinned trials: an algorithm that changes what it asks must change this file on purpose
    (python -m tests.contracts.test_algorithm)."""
    golden = json.loads(GOLDEN.read_text())
    assert name in golden, (
        f"{name} has no golden result; python -m tests.contracts.test_algorithm makes it"
    )
    assert _golden(name) == golden[name]


def _golden(name: str) -> list[str]:
    told = run(name, random_space(11, layers=6, levels=5), seed=3, evaluations=40)
    return [f"{''.join(map(str, t.candidate))} {t.fitness:.6f}" for t in told]


@pytest.mark.parametrize("name", names())
def test_candidates_whose_fitness_is_infinite(name: str) -> None:
    """A compressed network may diverge: two in three candidates do here."""

    def score(space: SearchSpace, candidate: tuple[int, ...]) -> float:
        return fitness(space, candidate) if sum(candidate) % 3 == 0 else np.inf

    space = random_space(3, layers=8, levels=6)
    with np.errstate(all="raise", under="ignore"):
        told = drive(create(name, space, np.random.default_rng(0), 60, {"cold": True}), 60, score)
    assert len(told) == 60 or name in SOLVERS


def test_every_golden_result_has_its_algorithm() -> None:
    assert sorted(json.loads(GOLDEN.read_text())) == names()


def test_a_told_trial_needs_its_fitness() -> None:
    from apportion.compressors.errors import ConfigurationError

    algorithm = create("random", make([[2, 1]], [[0, 1]], {}), np.random.default_rng(0), 10)
    with pytest.raises(ConfigurationError, match="must be told with its fitness"):
        algorithm.tell(algorithm.ask())


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({name: _golden(name) for name in names()}, indent=1) + "\n")
