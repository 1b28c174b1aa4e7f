"""Moves in a search space: candidates as positions (levels ordered by compression), and steps that
keep the budgets, one at a time or many at once."""

from __future__ import annotations

import numpy as np

from apportion.search.space.repair import fill, repair
from apportion.search.space.space import Candidate, SearchSpace


def encode(space: SearchSpace, candidate: Candidate) -> np.ndarray:
    """Level indices -> positions in `space.order`, int64 [layers]; 0 is the least compressed
    level."""
    return space.position[np.arange(len(candidate)), list(candidate)]


def decode(space: SearchSpace, positions: np.ndarray) -> Candidate:
    """Positions, [layers] -> level indices. Whole numbers within range are expected."""
    return tuple(int(order[int(p)]) for order, p in zip(space.order, positions, strict=True))


def nearest(space: SearchSpace, positions: np.ndarray) -> Candidate:
    """Any real positions -> the nearest levels, repaired."""
    return repair(space, decode(space, np.clip(np.rint(positions), 0, space.counts - 1)))


def spent(space: SearchSpace, positions: np.ndarray, errors: np.ndarray | None = None) -> Candidate:
    """Any real positions -> the nearest levels, repaired, and what that leaves of the budgets
    spent, by `errors` [layers, most levels] or the space's own: drop and add, Chu & Beasley
    1998."""
    levels = decode(space, np.clip(np.rint(positions), 0, space.counts - 1))
    return fill(space, repair(space, levels, errors), errors)


def draw(space: SearchSpace, rng: np.random.Generator) -> Candidate:
    """Every layer's level drawn uniformly, then repaired."""
    return repair(space, rng.integers(space.counts).tolist())


def begin(
    space: SearchSpace, rng: np.random.Generator, errors: np.ndarray | None = None
) -> Candidate:
    """A random profile to start from, that spends the budgets (by `errors`, or the space's own)."""
    return fill(space, repair(space, rng.integers(space.counts).tolist(), errors), errors)


def step(
    space: SearchSpace,
    rng: np.random.Generator,
    candidate: Candidate,
    pairs: int = 1,
    errors: np.ndarray | None = None,
) -> Candidate:
    """A candidate near a given one.

    Args:
        space: with its budgets.
        rng: draws layers and levels.
        candidate: where it begins.
        pairs: how often one layer goes some levels less compressed (a geometric number, mean two)
            and another one more.
        errors: what it is repaired by, and what that leaves of the budgets spent by, [layers, most
            levels]; by default the space's own.

    Returns:
        A feasible candidate.
    """
    return spent(space, paired(space, rng, encode(space, candidate), pairs), errors)


def paired(
    space: SearchSpace, rng: np.random.Generator, positions: np.ndarray, pairs: int
) -> np.ndarray:
    """Positions [layers] after `pairs` paired level steps, within range."""
    positions = positions.copy()
    for _ in range(pairs):
        chosen = rng.choice(len(positions), min(2, len(positions)), replace=False)
        for layer, direction in zip(chosen, (-1, 1), strict=False):
            moved = positions[layer] + direction * rng.geometric(0.5)
            positions[layer] = np.clip(moved, 0, space.counts[layer] - 1)
    return positions


_LOOK = 8
"""Layers at random that one change of `steps` chooses among."""
_CHANGES = 6


def steps(space: SearchSpace, rng: np.random.Generator, parents: np.ndarray) -> np.ndarray:
    """A `step` of one to three pairs from each of `parents`, [candidates, layers], all at once and
    so cheaper by far: each change that repairs or spends is the best one among a few layers at
    random. Those that do not meet the budgets after all are left out."""
    count, width = parents.shape
    layers = np.arange(width)
    positions = space.position[layers, parents]
    pairs = rng.integers(1, 4, (2, count)).min(0)
    for pair in range(int(pairs.max(initial=0))):
        rows = np.flatnonzero(pairs > pair)
        relaxed = rng.integers(width, size=len(rows))
        tightened = (relaxed + rng.integers(1, max(width, 2), len(rows))) % width
        for chosen, direction in ((relaxed, -1), (tightened, 1)):
            moved = positions[rows, chosen] + direction * rng.geometric(0.5, len(rows))
            positions[rows, chosen] = np.clip(moved, 0, space.counts[chosen] - 1)
    levels = space.order_table[layers, positions]
    loads = space.loads_of(levels)
    for change in range(_CHANGES):
        _improve(space, rng, levels, loads, spend=change >= _CHANGES - 2)
    return levels[_over(space, loads) <= 0]


def _improve(
    space: SearchSpace,
    rng: np.random.Generator,
    levels: np.ndarray,
    loads: np.ndarray,
    *,
    spend: bool,
) -> None:
    """One change in each row of `levels`, whose `loads` follow, that violates a budget: the least
    rise of additive error per violation removed. With `spend`, one in each row that meets them all:
    the greatest fall of error per load that still fits."""
    excess = _over(space, loads)
    rows = np.flatnonzero((excess > 0) != spend)
    if not len(rows):
        return
    looked = rng.integers(levels.shape[1], size=(len(rows), _LOOK))
    now = levels[rows[:, None], looked]
    rise = space.error_table[looked] - space.error_table[looked, now][:, :, None]
    more = space.load_changes(levels[rows], looked)
    left = _over(space, loads[:, rows, None, None] + more)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if spend:
            price = np.where(
                (rise < 0) & (left <= 0), rise / np.maximum(more.sum(0), 1e-12), np.inf
            )
        else:
            removed = excess[rows, None, None] - left
            price = np.where(
                removed > 1e-15, np.where(rise > 0, rise / removed, rise * removed), np.inf
            )
    flat = price.reshape(len(rows), -1)
    best = flat.argmin(1)
    useful = np.isfinite(flat[np.arange(len(rows)), best])
    which, level = np.divmod(best[useful], price.shape[2])
    changed = rows[useful]
    levels[changed, looked[useful, which]] = level
    loads[:, changed] = space.loads_of(levels[changed])


def _over(space: SearchSpace, loads: np.ndarray) -> np.ndarray:
    """Violations [...] of loads [budgets, ...], summed over the budgets; 0 where all hold."""
    return np.maximum(loads - space.limits.reshape(-1, *(1,) * (loads.ndim - 1)), 0.0).sum(0)
