"""Budgets that name several points of one metric, for the whole front from one job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from apportion.compressors.errors import BudgetError
from apportion.evaluators.costs.budgets import Budget, parse_budget

Amount = float | str
Budgets = Mapping[str, Amount | Sequence[Amount]]
MOST = 100
"""Points of one front."""


def is_front(budgets: Budgets) -> bool:
    """Whether a budget is a list of points."""
    return any(_is_list(value) for value in budgets.values())


def parse_points(budgets: Budgets) -> list[list[Budget]]:
    """The budgets of each point, all metrics, the tightest point first; one point where no budget
    is a list. Raises BudgetError, UnknownNameError."""
    return [
        [parse_budget(name, value) for name, value in point.items()] for point in points_of(budgets)
    ]


def points_of(budgets: Budgets) -> list[dict[str, Amount]]:
    """The same as they are written. Raises BudgetError, UnknownNameError."""
    fixed = {name: value for name, value in budgets.items() if not _is_list(value)}
    listed = [name for name in budgets if name not in fixed]
    if not listed:
        return [fixed]  # type: ignore[list-item]
    if len(listed) > 1:
        raise BudgetError(
            listed[1],
            f"one metric may have a list of points, and {listed[0]!r} has one already; give one "
            "amount here",
        )
    name = listed[0]
    values = _ordered(name, budgets[name])  # type: ignore[arg-type]
    return [{own: value if own == name else budgets[own] for own in budgets} for value in values]  # type: ignore[misc]


def _ordered(name: str, values: Sequence[Amount]) -> list[Amount]:
    """Tightest first."""
    if not 2 <= len(values) <= MOST:
        raise BudgetError(
            name, f"a list has 2 to {MOST} points, got {len(values)}; one is written without a list"
        )
    parsed = [parse_budget(name, value) for value in values]
    if len({budget.absolute is None for budget in parsed}) > 1:
        raise BudgetError(
            name,
            "the points of a list must all be shares of the dense model (4x, 0.25, 25%) or all "
            "amounts: their order cannot be told",
        )
    bounds = [budget.bound(1.0) for budget in parsed]
    for i, bound in enumerate(bounds):
        if bound in bounds[:i]:
            first = values[bounds.index(bound)]
            raise BudgetError(name, f"the points {first} and {values[i]} are the same one")
    order = sorted(range(len(bounds)), key=bounds.__getitem__)
    if order not in (list(range(len(bounds))), list(range(len(bounds)))[::-1]):
        valid = ", ".join(str(values[i]) for i in reversed(order))
        raise BudgetError(
            name, f"points must go from the loosest to the tightest, or back: [{valid}]"
        )
    return [values[i] for i in order]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
