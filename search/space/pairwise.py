"""Sizes of groups whose costs couple in pairs: the least additive loss under budgets, exactly.

x_a says that a group has size a, y_ab that two coupled groups have sizes a and b; the y of a pair
sum to its x (the local polytope: Wainwright & Jordan 2008, section 4). With whole x the y are whole
too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from apportion.compressors.errors import BudgetError

_TIGHTENED = 8
"""How often a budget that rounding exceeded is asked for anew, a little lower."""


@dataclass
class PairCosts:
    """One metric: fixed + sum of single[g][a] + sum of pair[g, h][a, b], for sizes a of g and b of
    h, by their numbers; float64."""

    fixed: float = 0.0
    single: dict[str, np.ndarray] = field(default_factory=dict)
    pair: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def total(self, chosen: Mapping[str, int]) -> float:
        return float(
            self.fixed
            + sum(own[chosen[g]] for g, own in self.single.items())
            + sum(own[chosen[g], chosen[h]] for (g, h), own in self.pair.items())
        )


@dataclass(frozen=True)
class Budget:
    """A metric's costs, and what they may be at most."""

    costs: PairCosts
    limit: float


def solve(
    losses: Mapping[str, np.ndarray], budgets: Mapping[str, Budget], seconds: float = 60.0
) -> tuple[dict[str, int], float]:
    """The sizes with the least sum of losses.

    Args:
        losses: group -> loss of each of its sizes; lower is better.
        budgets: by the metrics' names; all of them hold.
        seconds: of HiGHS at most; what it has by then is taken, the smallest sizes at least.

    Returns:
        Group -> number of its size, and the relative gap that is proven: 0 for the optimum, inf
        where nothing is.

    Raises:
        BudgetError: no choice of sizes meets the budgets.
    """
    limits = {name: budget.limit for name, budget in budgets.items()}
    for _ in range(_TIGHTENED):
        found = _solved(losses, budgets, limits, seconds)
        if found is None:
            break
        over = {n: b.costs.total(found[0]) - b.limit for n, b in budgets.items()}
        if max(over.values()) <= 0:
            return found
        for name, much in over.items():  # HiGHS keeps constraints to a millionth alone
            limits[name] -= max(0.0, 2 * much)
    least = dict.fromkeys(losses, 0)
    for name, budget in budgets.items():
        if (cost := budget.costs.total(least)) > budget.limit:
            raise BudgetError(
                name, f"{budget.limit:g} is asked, and the smallest sizes cost {cost:g}"
            )
    return least, float("inf")


def _solved(
    losses: Mapping[str, np.ndarray],
    budgets: Mapping[str, Budget],
    limits: Mapping[str, float],
    seconds: float,
) -> tuple[dict[str, int], float] | None:
    """As `solve`, for these limits, which may be exceeded by rounding; None: nothing was found."""
    first: dict[str, int] = {}
    total = 0
    for name, own in losses.items():
        first[name] = total
        total += len(own)
    pairs = sorted({pair for budget in budgets.values() for pair in budget.costs.pair})
    start: dict[tuple[str, str], int] = {}
    for g, h in pairs:
        start[g, h] = total
        total += len(losses[g]) * len(losses[h])
    objective = np.zeros(total)
    for name, own in losses.items():
        objective[first[name] : first[name] + len(own)] = own
    rows = _Rows(total)
    for name, own in losses.items():
        rows.add({first[name] + a: 1.0 for a in range(len(own))}, 1, 1)
    for g, h in pairs:
        n, m = len(losses[g]), len(losses[h])
        at = start[g, h] + np.arange(n * m).reshape(n, m)
        for a in range(n):
            rows.add({**dict.fromkeys(at[a].tolist(), 1.0), first[g] + a: -1.0}, 0, 0)
        for b in range(m):
            rows.add({**dict.fromkeys(at[:, b].tolist(), 1.0), first[h] + b: -1.0}, 0, 0)
    for metric, budget in budgets.items():
        costs, limit = budget.costs, limits[metric]
        scale = abs(limit) or 1.0
        row: dict[int, float] = {}
        for g, own in costs.single.items():
            row |= {first[g] + a: float(c) / scale for a, c in enumerate(own)}
        for pair, table in costs.pair.items():
            row |= {start[pair] + i: float(c) / scale for i, c in enumerate(table.ravel())}
        rows.add(row, -np.inf, (limit - costs.fixed) / scale)
    whole = np.zeros(total)
    whole[: sum(map(len, losses.values()))] = 1
    made = milp(
        objective,
        constraints=rows.constraint(),
        bounds=Bounds(0, 1),
        integrality=whole,
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    if made.x is None:
        return None
    chosen = {g: int(made.x[first[g] : first[g] + len(own)].argmax()) for g, own in losses.items()}
    return chosen, float(made.mip_gap or 0.0)


class _Rows:
    """Constraints, one by one."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._at: list[tuple[int, int, float]] = []
        self._low: list[float] = []
        self._high: list[float] = []

    def add(self, row: Mapping[int, float], low: float, high: float) -> None:
        self._at += [(len(self._low), column, value) for column, value in row.items()]
        self._low.append(low)
        self._high.append(high)

    def constraint(self) -> LinearConstraint:
        i, j, values = zip(*self._at, strict=True)
        shape = (len(self._low), self._width)
        return LinearConstraint(coo_array((values, (i, j)), shape=shape), self._low, self._high)


def multiples(size: int, multiple: int, least: int, most: int = 1 << 30) -> Sequence[int]:
    """Sizes that a group of `size` channels may have, the smallest first: multiples, and all; of so
    many at most, by larger steps."""
    step = multiple * max(1, -(-size // (multiple * most)))
    return sorted({*range(max(least, step), size, step), size})
