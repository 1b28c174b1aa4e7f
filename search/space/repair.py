"""Candidates brought within the budgets, and budgets spent: greedy changes by error per load."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apportion.compressors.levels import parse_level
from apportion.search.space.milp import solved
from apportion.search.space.space import Candidate, SearchSpace


def uniform(space: SearchSpace) -> Candidate:
    """The same level in every layer (a layer without it: its least compressed one; of channels,
    which come in multiples, that with as many): among the levels with which all budgets hold, the
    one with the least additive error. Where none does, the most compressed such profile,
    repaired."""
    names = dict.fromkeys(name for levels in space.levels for name in levels)
    profiles = {}
    for name in names:
        profiles[name] = tuple(
            levels.index(name) if name in levels else _alike(name, levels, int(order[0]))
            for levels, order in zip(space.levels, space.order, strict=True)
        )
    if holding := [profile for profile in profiles.values() if space.feasible(profile)]:
        return min(holding, key=space.error)
    return repair(
        space, min(profiles.values(), key=lambda profile: float(space.excess(space.loads(profile))))
    )


def _alike(name: str, levels: Sequence[str], otherwise: int) -> int:
    """Of a group's levels, which are one for each number of channels that stay, the one that stands
    for `name`."""
    if not name.startswith(("channels-", "heads-")):
        return otherwise
    wanted = parse_level(name)
    found = [
        (own.channels, i)
        for i, own in enumerate(map(parse_level, levels))
        if own.channels <= wanted.channels
        and (own.sparsity, own.quantization) == (wanted.sparsity, wanted.quantization)
        and (not own.channels or own.unit == wanted.unit)
    ]
    return max(found)[1] if found else otherwise


def repair(
    space: SearchSpace, candidate: Sequence[int], errors: np.ndarray | None = None
) -> Candidate:
    """The candidate itself where it is feasible; otherwise a feasible one near it. Greedy: the
    changes with the least rise of additive error (`errors` [layers, most levels], or the space's
    own) per violation removed, one per layer and a few layers at once, until all budgets hold; then
    layers go back towards where they were as far as the budgets allow. Where no single change helps
    (several budgets at odds), the additive optimum. Deterministic. The space must have passed
    `check_budgets`."""
    table = space.error_table if errors is None else errors
    asked = np.array(space.validate(candidate))
    current = asked.copy()
    layers = np.arange(len(space.layers))
    loads = space.loads(current)
    at_once = 1 + len(layers) // 8
    for _ in range(20 * len(layers)):
        excess = space.excess(loads)
        if excess <= 0:
            return _relax(space, table, asked, current, loads)
        moved = space.changed_loads(current, loads)
        removed = excess - space.excess(moved)
        rise = table - table[layers, current][:, None]
        helps = removed > 1e-15
        if not helps.any():
            break
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            # A change that costs no error comes first, the larger the better; the others by
            # error per violation removed.
            price = np.where(rise > 0, rise / removed, rise * removed)
        price = np.where(helps, price, np.inf)
        level = price.argmin(1)
        cheapest = np.argsort(price[layers, level], kind="stable")[:at_once]
        cheapest = cheapest[np.isfinite(price[cheapest, level[cheapest]])]
        # The first ones, as long as they leave half of the excess: until then one change alters
        # no other's price.
        together = np.cumsum(removed[cheapest, level[cheapest]]) <= excess / 2
        changed = cheapest[: max(1, int(together.sum()))]
        current[changed] = level[changed]
        loads = space.loads(current)
    return solved(space)  # the last resort


def fill(
    space: SearchSpace, candidate: Sequence[int], errors: np.ndarray | None = None
) -> Candidate:
    """What a feasible candidate leaves of the budgets, spent: the change with the greatest fall
    of additive error (`errors` [layers, most levels], or the space's own) per load that still fits,
    until none does. Deterministic."""
    table = space.error_table if errors is None else errors
    current = np.array(candidate)
    layers = np.arange(len(space.layers))
    loads = space.loads(current)
    while True:
        fall = table[layers, current][:, None] - table
        moved = space.changed_loads(current, loads)
        fits = (fall > 0) & (space.excess(moved) <= 0)
        if not fits.any():
            return tuple(int(index) for index in current)
        more = np.maximum((moved - loads[:, None, None]).sum(0), 1e-12) if space.budgets else 1.0
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            worth = np.where(fits, fall / more, -np.inf)
        layer, level = np.unravel_index(worth.argmax(), worth.shape)
        before = current[layer]
        current[layer] = level
        loads = space.loads(current)
        if space.excess(loads) > 0:  # by a rounding of the sum
            current[layer] = before
            return tuple(int(index) for index in current)


def _relax(
    space: SearchSpace,
    table: np.ndarray,
    asked: np.ndarray,
    current: np.ndarray,
    loads: np.ndarray,
) -> Candidate:
    """Bring changed layers back towards `asked` while that lowers the additive error and the
    budgets hold."""
    layers = np.arange(len(space.layers))
    wanted = space.position[layers, asked]
    while not np.array_equal(asked, current):
        distance = np.abs(space.position - wanted[:, None])
        rise = table - table[layers, current][:, None]
        moved = space.changed_loads(current, loads)
        allowed = (
            (rise < 0)
            & (distance < distance[layers, current][:, None])
            & (space.excess(moved) <= 0)
        )
        if not allowed.any():
            break
        layer, level = np.unravel_index(np.where(allowed, rise, np.inf).argmin(), rise.shape)
        before = current[layer]
        current[layer] = level
        loads = space.loads(current)
        if space.excess(loads) > 0:  # by a rounding of the sum
            current[layer] = before
            break
    return tuple(int(index) for index in current)
