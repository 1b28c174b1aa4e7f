"""How fast budgets fall from step to step."""

from __future__ import annotations

from apportion.compressors.errors import ConfigurationError
from apportion.evaluators.costs.budgets import Budget

_UNITS = {"bits": ("bit", 1.0), "latency": ("s", 1.0)}
_COUNTS = ("K", 1e3)
_ROUNDING = 1e-12
"""An amount, written and read again, must not be below itself."""


def left(kind: str, final: float, step: int, steps: int) -> float:
    """The share of the dense model's cost that step 1, 2, ... of `steps` may have, down to `final`
    at the last.

    agp: the share that is gone rises as a cubic, fast at first (Zhu & Gupta 2017, equation 1, from
    none). linear: by equal amounts. lottery: every step leaves the same share of what the one
    before left (Frankle & Carbin 2019, section 1)."""
    done = step / steps
    if kind == "lottery":
        return float(final**done)
    gone = 1 - final
    if kind == "agp":
        return 1 - gone * (1 - (1 - done) ** 3)
    if kind in ("linear", "one-shot"):
        return 1 - gone * done
    raise ConfigurationError(f"schedule: {kind} has no course of steps")


def amounts(
    kind: str, budgets: list[Budget], dense: dict[str, float], step: int, steps: int
) -> dict[str, float]:
    """Metric -> what a step may cost, in the metric's unit; `dense`: what the dense model costs."""
    made = {}
    for budget in budgets:
        whole = dense[budget.metric]
        final = budget.bound(whole) / whole
        made[budget.metric] = whole * (left(kind, final, step, steps) if final < 1 else final)
    return made


def as_budget(metric: str, amount: float) -> str:
    """An amount as job files say it."""
    unit, size = _UNITS.get(metric, _COUNTS)
    return f"{amount * (1 + _ROUNDING) / size!r}{unit}"
