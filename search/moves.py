"""Moves in a search space: candidates as positions (levels ordered by compression), and steps that keep the budgets."""

from __future__ import annotations

import numpy as np

from search.space import Candidate, SearchSpace


def encode(space: SearchSpace, candidate: Candidate) -> np.ndarray:
    """Level indices -> positions in `space.order`, int64 [layers]; 0 is the least compressed level."""
    return space.position[np.arange(len(candidate)), list(candidate)]


def decode(space: SearchSpace, positions: np.ndarray) -> Candidate:
    """Positions, [layers] -> level indices. Whole numbers within range are expected."""
    return tuple(int(order[int(p)]) for order, p in zip(space.order, positions, strict=True))


def nearest(space: SearchSpace, positions: np.ndarray) -> Candidate:
    """Any real positions -> the nearest levels, repaired."""
    return space.repair(decode(space, np.clip(np.rint(positions), 0, space.counts - 1)))


def draw(space: SearchSpace, rng: np.random.Generator) -> Candidate:
    """Every layer's level drawn uniformly, then repaired."""
    return space.repair(rng.integers(space.counts).tolist())


def begin(space: SearchSpace, rng: np.random.Generator) -> Candidate:
    """A random profile to start from, that spends the budgets."""
    return space.fill(draw(space, rng))


def step(space: SearchSpace, rng: np.random.Generator, candidate: Candidate, pairs: int = 1) -> Candidate:
    """`pairs` times: one layer some levels less compressed (a geometric number, mean two) and another one more; repaired,
    and what that leaves of the budgets spent."""
    positions = encode(space, candidate)
    for _ in range(pairs):
        chosen = rng.choice(len(positions), min(2, len(positions)), replace=False)
        for layer, direction in zip(chosen, (-1, 1), strict=False):
            moved = positions[layer] + direction * rng.geometric(0.5)
            positions[layer] = np.clip(moved, 0, space.counts[layer] - 1)
    return space.fill(space.repair(decode(space, positions)))
