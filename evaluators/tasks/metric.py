"""Metric: what a task's models are measured by, as reports print it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from apportion.compressors.errors import ConfigurationError

RESERVED = (
    *("profile", "budgets", "costs", "fitness", "metric", "exports", "activations", "steps"),
    *("provenance", "written", "files", "bytes", "of_dense", "largest_difference", "processor"),
    *("row", "published"),
)
"""Names that exports use for other things than the metric."""


@dataclass(frozen=True, slots=True)
class Metric:
    """How good a model is at its task, as reports print it.

    Args:
        name: such as accuracy. Exports have the values under this name, so that a few names, which
            they use for other things, are not valid.
        unit: such as %; empty where it has none.
        higher_is_better: its direction.
        tolerance: by how much an exported model's value may differ from that of the model it stands
            for, in the metric's unit. Rounding may flip a few samples.
        digits: Python's format of a value.
        relative: what it may differ by on top of that, as a share of the value: of metrics whose
            values have no bound.

    Raises:
        ConfigurationError: a name that is not valid.
    """

    name: str
    unit: str
    higher_is_better: bool
    tolerance: float
    digits: str = ".4g"
    relative: float = 0.0

    def __post_init__(self) -> None:
        if not self.name or self.name in RESERVED:
            raise ConfigurationError(
                f"a metric cannot be called {self.name!r}; taken are {', '.join(RESERVED)}"
            )

    @property
    def title(self) -> str:
        """For the head of a table: "accuracy, %", or "perplexity, lower is better"; where nothing
        is said of its direction, higher is better."""
        return ", ".join(filter(None, (self.name, self.unit, self.direction)))

    @property
    def direction(self) -> str:
        """Empty where higher is better, as it is of most metrics."""
        return "" if self.higher_is_better else "lower is better"

    def number(self, value: float | None) -> str:
        """Without the unit: 88.76. None, as files have what is no number, and NaN are undefined.
        Without an exponent from 1 to 1e9, and with one above."""
        if value is None or math.isnan(value):
            return "undefined"
        text = f"{value:{self.digits}}"
        if abs(value) >= 1e9:
            return f"{value:.4g}"
        return f"{value:.0f}" if "e" in text and abs(value) >= 1 else text

    def text(self, value: float | None) -> str:
        """With the unit: 88.76 %."""
        number = self.number(value)
        return number if number == "undefined" else f"{number} {self.unit}".rstrip()

    def agree(self, one: float, other: float) -> bool:
        """Whether `one` is `other` within the tolerance. Two that are not numbers are, and so are
        two that are the same infinity."""
        if math.isnan(one) or math.isnan(other):
            return math.isnan(one) and math.isnan(other)
        return one == other or abs(one - other) <= self.allowed(other)

    def allowed(self, value: float) -> float:
        """By how much another value may differ from this one; 0 for infinity."""
        return self.tolerance + self.relative * abs(value) if math.isfinite(value) else 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
