"""Exact solvers for additive errors: a dynamic program for one budget; beside HiGHS's MILP
(search/space/milp.py) for any number. Costs of pairs come into the dynamic program by an additive
bound (search/space/majorant.py)."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from apportion.compressors.errors import SpaceError
from apportion.search.space.majorant import linearised, majorant
from apportion.search.space.milp import solved
from apportion.search.space.repair import fill, repair, uniform
from apportion.search.space.space import Candidate, SearchSpace

BUCKETS = 10_000
_BOUNDS = (linearised, linearised, majorant, majorant, majorant)
"""Additive costs in the place of pairs', in turn, each about what the one before led to."""
COARSE = 2_000
"""Buckets where a dynamic program proposes one candidate of many: rounding is given back in any
case."""


def optimum(space: SearchSpace) -> Candidate:
    """The feasible candidate of least additive error, proven by MILP. The dynamic program runs
    beside it: its result stands where the solver gives up, and where it is better within the
    solver's tolerance. The space must have passed `check_budgets`; it keeps the answer."""
    if "optimum" not in space.solved:
        found = [solve(space), *([solved(space)] if space.budgets else [])]
        space.solved["optimum"] = min(found, key=space.error)
    return space.solved["optimum"]


def solve(space: SearchSpace) -> Candidate:
    """`approximate` for the space's own errors, with all buckets."""
    return approximate(space, space.error_table, BUCKETS)


def approximate(space: SearchSpace, errors: np.ndarray, buckets: int = COARSE) -> Candidate:
    """A feasible candidate that minimises `errors` [layers, most levels]: exact (up to buckets) for
    one budget; for several, the best of the optima under each one, repaired. With pairs, what the
    dynamic program finds by their costs to first order, repaired, and by additive bounds on them,
    each tight about the candidate before (majorization-minimization: Hunter & Lange 2004). Fast
    enough to be called for every candidate of a search."""
    if not space.budgets:
        return tuple(int(i) for i in errors.argmin(1))
    if space.coupling is not None:
        return _bounded(space, errors, buckets)
    found = [
        repair(space, dynamic_program(space, errors, b, buckets)) for b in range(len(space.budgets))
    ]
    return min(found, key=lambda c: float(errors[np.arange(len(c)), list(c)].sum()))


def _bounded(space: SearchSpace, errors: np.ndarray, buckets: int) -> Candidate:
    """`approximate` with pairs."""
    layers = np.arange(len(space.layers))

    def error(candidate: Candidate) -> float:
        return float(errors[layers, list(candidate)].sum())

    if "uniform" not in space.solved:
        space.solved["uniform"] = uniform(space)
    greedy = repair(space, [int(order[0]) for order in space.order], errors)
    starts = [fill(space, start, errors) for start in (space.solved["uniform"], greedy)]
    best = min(starts, key=error)
    for b in range(len(space.budgets)):
        current = best
        for additive in _BOUNDS:
            try:
                found = dynamic_program(space, errors, b, buckets, additive(space, b, current))
            except SpaceError:  # a linearisation that nothing meets, or a majorant's rounding
                continue
            current = fill(space, repair(space, found, errors), errors)
            best = min(best, current, key=error)
    return best


def dynamic_program(
    space: SearchSpace,
    errors: np.ndarray,
    budget: int = 0,
    buckets: int = BUCKETS,
    loads: np.ndarray | None = None,
) -> Candidate:
    """Minimise the sum of `errors` [layers, most levels] (inf: no such level) under one budget (its
    number in `space.budgets`). Costs above each layer's cheapest are rounded up to `buckets` steps
    of what is left for them (Frantar & Alistarh 2022 (SPDY), algorithm 1). What the roundings of a
    profile add up to is given back: of the profiles that need up to one step per layer too many,
    the best one that meets the budget exactly is taken. Levels that no optimum can hold are left
    out first (`_promising`).

    Args:
        space: with its budgets.
        errors: lower is better.
        budget: its number.
        buckets: steps of cost.
        loads: [layers, most levels], of this budget; by default the layers' own, with pairs an
            additive bound on them all.

    Returns:
        The candidate.

    Raises:
        SpaceError: none meets the budget.
    """
    loads = majorant(space, budget, space.cheapest()) if loads is None else loads
    limit = float(space.limits[budget])
    extra = loads - loads.min(1, keepdims=True)
    room = float(limit - loads.min(1).sum())
    promising = _promising(extra, errors, room)
    for allowed in (
        promising,
        promising | (extra == 0),
    ):  # coarse steps may leave room for the cheapest levels alone
        options = _options(extra, np.where(allowed, errors, np.inf), room, buckets)
        if options is not None and (values := _values(options, buckets)) is not None:
            break
    else:
        raise SpaceError("no candidate meets the budget; check_budgets says so")
    chosen = _trace(options, values, buckets)
    meets = loads[np.arange(len(loads)), chosen].sum(1) <= limit
    # Within `buckets` steps, in the last row, it is met whatever the sums' rounding says.
    return _fill(loads, limit, errors, chosen[meets.argmax() if meets.any() else -1])


class _Options(NamedTuple):
    """A layer's levels that no other beats in both cost and error: their whole steps of cost, their
    errors, cheapest first."""

    levels: np.ndarray
    steps: np.ndarray
    errors: np.ndarray


def _options(
    extra: np.ndarray, errors: np.ndarray, room: float, buckets: int
) -> list[_Options] | None:
    """Per layer; costs are rounded up to steps of which `room` holds `buckets`, and levels that
    take more are left out. None where a layer has none left."""
    order = np.argsort(extra, axis=1, kind="stable")
    cost, error = np.take_along_axis(extra, order, 1), np.take_along_axis(errors, order, 1)
    unit = room / buckets if room > 0 else 1e-300
    # 1e-9: a cost that is a whole number of steps must not become one more by a rounding of the
    # division
    with np.errstate(over="ignore"):
        steps = np.where(cost > 0, np.ceil(cost / unit - 1e-9), 0.0)
    lowest = np.minimum.accumulate(error, axis=1)
    kept = steps <= buckets
    kept[:, 0] &= np.isfinite(error[:, 0])
    kept[:, 1:] &= error[:, 1:] < lowest[:, :-1]
    if not kept.any(1).all():
        return None
    levels, whole, errors = order[kept], steps[kept].astype(np.int64), error[kept]
    ends = np.cumsum(kept.sum(1)).tolist()
    return [
        _Options(levels[a:b], whole[a:b], errors[a:b]) for a, b in itertools.pairwise([0, *ends])
    ]


def _values(options: list[_Options], buckets: int) -> np.ndarray | None:
    """[layers + 1, buckets + 1 + layers]: the least error of the first l layers at a cost of c
    steps or less. None where all layers do not fit into `buckets` steps."""
    size = buckets + 1 + len(options)
    values = np.empty((len(options) + 1, size))
    values[0] = 0.0
    total = np.empty(size)
    for before, best, own in zip(values, values[1:], options, strict=False):
        first, *others = zip(own.steps.tolist(), own.errors.tolist(), strict=True)
        best[: first[0]] = np.inf
        np.add(before[: size - first[0]], first[1], out=best[first[0] :])
        for step, error in others:
            part = np.add(before[: size - step], error, out=total[: size - step])
            np.minimum(best[step:], part, out=best[step:])
    return values if np.isfinite(values[-1, buckets]) else None


def _trace(options: list[_Options], values: np.ndarray, buckets: int) -> np.ndarray:
    """The profiles behind the last row's values at `buckets` steps and more, each once,
    most_expensive first: [profiles, layers]."""
    most = np.arange(values.shape[1] - 1, buckets - 1, -1)
    left = most[(most == buckets) | (values[-1, most - 1] != values[-1, most])]
    chosen = np.empty((len(left), len(options)), dtype=np.int64)
    for layer in range(len(options) - 1, -1, -1):
        own = options[layer]
        if len(own.levels) == 1:
            chosen[:, layer] = own.levels[0]
            left = left - own.steps[0]
            continue
        before = left[:, None] - own.steps
        reached = (
            values[layer, np.maximum(before, 0)] + own.errors == values[layer + 1, left][:, None]
        )
        taken = (reached & (before >= 0)).argmax(1)
        chosen[:, layer] = own.levels[taken]
        left = left - own.steps[taken]
    return chosen


def _promising(extra: np.ndarray, errors: np.ndarray, room: float) -> np.ndarray:
    """Which levels an optimum under one budget can hold, [layers, most levels]: those whose
    Lagrangian reduced cost is at most the gap between the relaxation's bound and a feasible profile
    (Everett 1963; variable fixing). `extra`: costs above each layer's cheapest, `room` what they
    may sum to."""
    present = np.isfinite(extra) & np.isfinite(errors)
    cost, error = np.where(present, extra, 0.0), np.where(present, errors, np.inf)
    layers = np.arange(len(cost))

    def relaxed(price: float) -> tuple[np.ndarray, np.ndarray, float]:
        table = error + price * cost
        chosen = table.argmin(1)
        return table, chosen, float(cost[layers, chosen].sum())

    low, high = 0.0, 1.0
    table, chosen, spent = relaxed(low)
    if spent > room:
        for _ in range(80):
            if relaxed(high)[2] <= room:
                break
            low, high = high, 8 * high
        else:
            return present
        for _ in range(25):
            middle = (low * high) ** 0.5 if low > 0 else high / 8
            low, high = (low, middle) if relaxed(middle)[2] <= room else (middle, high)
        table, chosen, spent = relaxed(high)
    else:
        high = 0.0
    least = table.min(1)
    feasible = np.array(_fill(cost, room, np.where(present, errors, np.inf), chosen))
    gap = float(error[layers, feasible].sum() - (least.sum() - high * room))
    return present & (table - least[:, None] <= gap * (1 + 1e-9) + 1e-12 * np.abs(least).max())


def _fill(loads: np.ndarray, limit: float, errors: np.ndarray, candidate: np.ndarray) -> Candidate:
    """Spend what rounding left over: the best single change that the budget still allows, until
    there is none."""
    layers = np.arange(len(candidate))
    while True:
        spare = limit - loads[layers, candidate].sum()
        gain = errors - errors[layers, candidate][:, None]
        dearer = loads - loads[layers, candidate][:, None]
        allowed = np.where((gain < 0) & (dearer <= spare), gain, np.inf)
        layer, level = np.unravel_index(allowed.argmin(), allowed.shape)
        if not np.isfinite(allowed[layer, level]):
            return tuple(int(index) for index in candidate)
        candidate[layer] = level
