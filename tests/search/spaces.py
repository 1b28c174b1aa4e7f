"""Small search spaces with known properties."""

from __future__ import annotations

import itertools

import numpy as np

from apportion.search.space.space import Candidate, SearchSpace


def make(
    costs: list[list[float]] | dict[str, list[list[float]]],
    errors: list[list[float]],
    budgets: dict[str, float],
    base: float = 0.0,
) -> SearchSpace:
    """A space from plain lists; `budgets` in absolute units, base included."""
    tables = costs if isinstance(costs, dict) else {"flops": costs}
    rows = {
        metric: tuple(np.array(row, dtype=float) for row in table)
        for metric, table in tables.items()
    }
    return SearchSpace(
        layers=tuple(f"layer{i}" for i in range(len(errors))),
        levels=tuple(
            tuple("dense" if j == 0 else f"l{j}" for j in range(len(row))) for row in errors
        ),
        costs=rows,
        base=dict.fromkeys(rows, base),
        dense={
            metric: base + sum(float(row[0]) for row in table) for metric, table in rows.items()
        },
        budgets=budgets,
        errors=tuple(np.array(row, dtype=float) for row in errors),
    )


def random_space(
    seed: int, layers: int = 5, levels: int = 4, metrics: int = 1, share: float = 0.5
) -> SearchSpace:
    """Ladder-like layers: every level cheaper and worse than the one before; budgets at `share` of
    what can be saved."""
    rng = np.random.default_rng(seed)
    names = ["flops", "params"][:metrics]
    sizes = {m: rng.integers(5, 60, layers) for m in names}
    keep = [
        np.concatenate([[1.0], np.sort(rng.uniform(0.05, 0.9, levels - 1))[::-1]])
        for _ in range(layers)
    ]
    costs = {
        m: [np.round(sizes[m][i] * keep[i] * 10).tolist() for i in range(layers)] for m in names
    }
    errors = [
        np.concatenate([[0.0], np.sort(rng.exponential(size=levels - 1))]).tolist()
        for _ in range(layers)
    ]
    budgets = {}
    for metric, table in costs.items():
        least, most = sum(min(row) for row in table), sum(max(row) for row in table)
        budgets[metric] = 100.0 + least + share * (most - least)
    return make(costs, errors, budgets, base=100.0)


def brute_force(space: SearchSpace) -> tuple[Candidate, float]:
    """The feasible candidate of least additive error, by trying all."""
    every = itertools.product(*(range(count) for count in space.counts))
    best = min((c for c in every if space.feasible(c)), key=space.error)
    return best, space.error(best)


DEGENERATE: dict[str, SearchSpace] = {
    "zero-cost levels": make([[4, 0, 0], [4, 2, 0]], [[0, 1, 2], [0, 1, 5]], {"flops": 2}),
    "one level": make([[3], [3, 1]], [[0], [0, 1]], {"flops": 4}),
    "one layer, one level": make([[3]], [[0]], {"flops": 3}),
    "dearer than dense": make([[2, 3, 1], [2, 4, 1]], [[0, -1, 1], [0, -5, 1]], {"flops": 3}),
    "equal costs": make([[2, 2, 2], [2, 2, 2]], [[1, 0, 2], [0, 3, 1]], {"flops": 4}),
    "only the cheapest profile": make(
        [[5, 0.3], [5, 0.1], [5, 0.7]], [[0, 1], [0, 1], [0, 1]], {"flops": 0.3 + 0.1 + 0.7}
    ),
    "different numbers of levels": make(
        [[6, 3, 1], [6, 2], [6]], [[0, 1, 2], [0, 3], [0]], {"flops": 11}
    ),
    "no budget": make([[2, 1], [2, 1]], [[0, 1], [0, 1]], {}),
    "two budgets at odds": make(
        {"flops": [[9, 1, 8], [9, 1, 8]], "params": [[9, 8, 1], [9, 8, 1]]},
        [[0, 1, 1.5], [0, 1, 2]],
        {"flops": 10, "params": 10},
    ),
}
