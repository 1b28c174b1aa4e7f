"""Budgets as users write them: a share of the dense model, how many times smaller or faster, or an
amount with its unit."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from apportion.compressors.errors import BudgetError, UnknownNameError
from apportion.db.documents.text import meant
from apportion.evaluators.costs.model import METRICS

_SIZES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "B": 1.0}
_COUNTS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS: dict[str, dict[str, float]] = {
    "bits": {unit: 8 * size for unit, size in _SIZES.items()} | {"bit": 1.0},
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
}
_ALIASES = {"speedup": "latency"}
"""A budget by another name: `speedup: 3x` bounds latency to a third."""
_NUMBER = re.compile(r"([0-9.]+(?:[eE][+-]?\d+)?)\s*([A-Za-z%]*)")


@dataclass(frozen=True, slots=True)
class Budget:
    """An upper bound on `metric`: `share` of the dense model where `absolute` is None, else an
    amount in the metric's unit."""

    metric: str
    share: float
    absolute: float | None = None

    def bound(self, dense: float) -> float:
        """The bound in the metric's unit, for a dense model that costs `dense`."""
        return self.share * dense if self.absolute is None else self.absolute


def parse_budget(name: str, value: float | str) -> Budget:
    """`flops: 0.25`, `params: 4x` and `25%` (shares of the dense model), `speedup: 3x`, `latency:
    2.5ms`, `bits: 1.2MiB`, `flops: 40M`. Raises UnknownNameError, BudgetError."""
    metric = _ALIASES.get(name, name)
    if metric not in METRICS:
        raise UnknownNameError("metric", name, [*METRICS, *_ALIASES], "budgets")
    units = _UNITS.get(metric, _COUNTS)
    match = _NUMBER.fullmatch(str(value).strip())
    number = _float(match[1]) if match else None
    if match is None or number is None:
        raise BudgetError(
            name,
            "expected a share of the dense model, such as 0.25 or 4x, or an amount; got "
            f"{value!r:.60}{meant(str(value).strip())}",
        )
    unit = match[2]
    if unit in units:
        if number <= 0:
            raise BudgetError(name, f"must be above 0; got {value!r}")
        return Budget(metric, 1.0, number * units[unit])
    if unit not in ("", "x", "%"):
        raise BudgetError(name, f"unknown unit {unit!r}; valid: x, %, {', '.join(units)}")
    times = unit == "x" or (name in _ALIASES and not unit)
    share = (
        (1 / number if number > 0 else 0.0) if times else number / 100 if unit == "%" else number
    )
    if not 0 < share <= 1:
        if times:
            raise BudgetError(name, f"must be 1x or more; got {value!r}")
        raise BudgetError(
            name, f"must be a fraction of the dense model, above 0 and at most 1; got {value!r}"
        )
    return Budget(metric, share)


def _float(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
