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
    pairs: dict[str, dict[tuple[int, int], np.ndarray]] | None = None,
) -> SearchSpace:
    """A space from plain lists; `budgets` in absolute units, base included. Level 0 is dense."""
    pairs = pairs or {}
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
            metric: base
            + sum(float(row[0]) for row in table)
            + sum(float(table[0, 0]) for table in pairs.get(metric, {}).values())
            for metric, table in rows.items()
        },
        budgets=budgets,
        errors=tuple(np.array(row, dtype=float) for row in errors),
        pairs=pairs,
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


def coupled_space(
    seed: int,
    layers: int = 5,
    levels: int = 4,
    metrics: int = 1,
    share: float = 0.4,
    odd: bool = False,
) -> SearchSpace:
    """Channel groups whose costs are products of what is kept, in a chain with one stream that
    couples with every second group; `odd`: any tables of pairs. Budgets at `share` of
    what can be saved from dense to the last levels."""
    rng = np.random.default_rng(seed)
    names = ["flops", "params"][:metrics]
    counts = [max(2, levels - int(rng.integers(2))) for _ in range(layers)]
    kept = [np.sort(rng.choice(np.arange(1, 33), n, replace=False))[::-1] for n in counts]
    edges = dict.fromkeys(
        [(i, i + 1) for i in range(layers - 1)] + [(0, j) for j in range(2, layers, 2)]
    )
    pairs: dict[str, dict[tuple[int, int], np.ndarray]] = {name: {} for name in names}
    costs: dict[str, list[list[float]]] = {}
    for name in names:
        for i, j in edges:
            own = rng.integers(1, 20) * np.outer(kept[i], kept[j]).astype(float)
            if odd:
                own = own.mean() * rng.exponential(size=own.shape)
            pairs[name][i, j] = own
        costs[name] = [(rng.integers(0, 60) * own).astype(float).tolist() for own in kept]
    errors = [
        np.concatenate([[0.0], np.sort(rng.exponential(size=n - 1))]).tolist() for n in counts
    ]
    space = make(costs, errors, {}, 100.0, pairs)
    last = [n - 1 for n in counts]
    bounds = {}
    for name in names:
        ends = space.total(name, [0] * layers), space.total(name, last)
        bounds[name] = min(ends) + share * abs(ends[0] - ends[1])
    return make(costs, errors, bounds, 100.0, pairs)


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
    "products": make(
        [[2, 1], [0, 0], [4, 0]],
        [[0, 1], [0, 2], [0, 1]],
        {"flops": 9},
        pairs={"flops": {(0, 1): np.outer([4.0, 1], [4, 2]), (0, 2): np.outer([4.0, 1], [2, 0])}},
    ),
    "pairs alone, the cheapest profile alone": make(
        [[0, 0], [0, 0]],
        [[0, 1], [0, 2]],
        {"flops": 0.3},
        pairs={"flops": {(0, 1): np.array([[3.0, 1], [1, 0.3]])}},
    ),
    "two budgets of pairs at odds": make(
        {"flops": [[9, 1, 8], [9, 1, 8]], "params": [[9, 8, 1], [9, 8, 1]]},
        [[0, 1, 1.5], [0, 1, 2]],
        {"flops": 11, "params": 12},
        pairs={
            "flops": {(0, 1): np.outer([3.0, 1, 2], [3, 1, 2])},
            "params": {(0, 1): np.outer([3.0, 1, 1], [3, 2, 1])},
        },
    ),
    "no budget": make([[2, 1], [2, 1]], [[0, 1], [0, 1]], {}),
    "two budgets at odds": make(
        {"flops": [[9, 1, 8], [9, 1, 8]], "params": [[9, 8, 1], [9, 8, 1]]},
        [[0, 1, 1.5], [0, 1, 2]],
        {"flops": 10, "params": 10},
    ),
}
