"""Searches that users ask for by name, on many layers, where the optimum is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apportion.search.algorithms.base import Trial
from apportion.search.algorithms.learned import LearnedErrors
from apportion.search.algorithms.registry import create
from apportion.search.space.additive import solve
from apportion.search.space.moves import begin
from apportion.search.space.repair import uniform
from apportion.search.space.space import SearchSpace
from tests.search.spaces import make, random_space


def closed(name: str, seen: SearchSpace, space: SearchSpace, evaluations: int) -> float:
    """Share of the gap from the uniform profile to the optimum of `space` that a cold search which
    sees the errors of `seen` closes."""
    algorithm = create(name, seen, np.random.default_rng(1), evaluations, {"cold": True})
    told: list[float] = []
    while len(told) < evaluations and (asked := algorithm.ask()):
        batch = [Trial(t.candidate, t.fidelity, space.error(t.candidate)) for t in asked]
        algorithm.tell(batch)
        told += [t.fitness for t in batch if t.fitness is not None]
    start, best = space.error(uniform(space)), space.error(solve(space))
    return (start - min(told)) / (start - best)


def shuffled(space: SearchSpace) -> SearchSpace:
    """The space with errors that rank its layers wrongly."""
    off = np.exp(np.random.default_rng(3).normal(size=len(space.layers)))
    return replace(
        space, errors=tuple(row * float(k) for row, k in zip(space.errors, off, strict=True))
    )


@pytest.mark.parametrize("name", ["ga", "pso", "abc"])
def test_54_layers_are_not_too_many(name: str) -> None:
    space = random_space(7, layers=54, levels=20, share=0.3)
    assert closed(name, space, space, 500) >= 0.95


@pytest.mark.parametrize("name", ["ga", "pso", "abc"])
def test_a_table_that_ranks_54_layers_wrongly_is_put_right(name: str) -> None:
    space = random_space(7, layers=54, levels=20, share=0.3)
    assert closed(name, shuffled(space), space, 500) >= 0.88


def test_a_right_table_stays_as_it_is() -> None:
    space = random_space(2, layers=12, levels=8)
    rng, learned = np.random.default_rng(0), LearnedErrors(space)
    for _ in range(200):
        candidate = begin(space, rng)
        learned.learn([Trial(candidate, 1.0, 5 + 3 * space.error(candidate))])
    np.testing.assert_allclose(learned.table, space.error_table, rtol=0.02)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_trials_without_a_finite_fitness_teach_nothing(value: float) -> None:
    space = random_space(2)
    learned = LearnedErrors(space)
    for candidate in np.ndindex(*space.counts):
        learned.learn([Trial(candidate, 1.0, value), Trial(candidate, 0.5, 1.0)])
    assert (learned.table == space.error_table).all()


def test_without_errors_levels_count_by_their_rank() -> None:
    space = make([[6, 3, 1], [6, 2]], [[0, 0, 0], [0, 0]], {"flops": 9})
    assert LearnedErrors(space).table.tolist() == [[0, 0.25, 1], [0, 1, np.inf]]
