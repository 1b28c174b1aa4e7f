"""Budgets as one reads them. Imports nothing else: lists of runs must be quick."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def title(budgets: Mapping[str, object]) -> str:
    """As in `flops 4x, bits 1MiB`; of a list of points with commas between them."""
    return ", ".join(f"{name} {_written(value)}" for name, value in budgets.items())


def folder_name(budgets: Mapping[str, object]) -> str:
    """The same as a folder is called, such as `flops-4x`."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", title(budgets).replace("%", "pct"))


def _written(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value)
