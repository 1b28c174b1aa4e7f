"""Latency tables: seconds of every layer at every level, from files (latency_files.py) or from a
user's own function.

A level that a table does not name costs what dense costs; unstructured levels between two
sparsities of a table are interpolated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import isotonic_regression

from apportion.compressors.errors import ConfigurationError, DataError, first_line
from apportion.compressors.levels import DENSE, Level
from apportion.compressors.user_code import load_object

WHOLE = "*"
"""In a CSV table, the layer name of the row with the whole dense model's time."""


_LADDERS = ("unstr", "filter")


@dataclass(frozen=True)
class LatencyTable:
    """`seconds[layer][level]`, dense among the levels of each; `whole`: of the whole dense model;
    `source`: the file. Lower is faster. `moved`: entries that `cleaned` changed."""

    seconds: dict[str, dict[Level, float]]
    whole: float
    source: str
    moved: int = 0

    @property
    def base(self) -> float:
        """What is not in any of the layers."""
        return self.whole - sum(row[DENSE] for row in self.seconds.values())

    def of(self, layer: str, levels: Sequence[Level]) -> np.ndarray:
        """Seconds of a layer at `levels`. Raises DataError for a layer that the table lacks."""
        if layer not in self.seconds:
            raise DataError(
                self.source,
                f"has no layer {layer!r}; it has {', '.join(list(self.seconds)[:5])}, ...",
            )
        row = self.seconds[layer]
        return np.array([row[level] if level in row else _between(row, level) for level in levels])

    def unknown(self, layer: str, levels: Iterable[Level]) -> list[Level]:
        """The levels that nothing in the table speeds up: they cost what dense costs."""
        row = self.seconds.get(layer, {})
        laddered = {"unstr", *(_ladder_of(level) for level in row)} - {None}
        return [level for level in levels if level not in row and _ladder_of(level) not in laddered]

    def cleaned(self) -> LatencyTable:
        """The table with each layer's times of unstructured and of filter levels made
        non-increasing in sparsity, by isotonic regression: a sparser layer that measured slower was
        noise. Dense is the first of the unstructured ones; a filter level may be slower, as what it
        lacks has to be filled in."""
        rows, moved = {}, 0
        for layer, row in self.seconds.items():
            rows[layer] = dict(row)
            for kind in _LADDERS:
                levels, _, times = _ladder(rows[layer], kind, dense=kind == "unstr")
                smooth = isotonic_regression(times, increasing=False).x
                moved += int((~np.isclose(smooth, times, rtol=1e-9, atol=0)).sum())
                rows[layer] |= dict(zip(levels, smooth.tolist(), strict=True))
        return replace(self, seconds=rows, moved=moved)


def is_function(table: str) -> bool:
    """Whether `latency.table` names a function instead of a file: package.module:function."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", table) is not None


def ask_latency(name: str, levels: Mapping[str, Sequence[Level]]) -> LatencyTable:
    """The table that a user's own function gives: `name` is module:function, called with (layer,
    level), both text, for seconds; with ("*", "dense") for those of the whole dense model. Raises
    CodeError, ConfigurationError, DataError."""
    function = load_object(name, "latency.table")
    if not callable(function):
        raise ConfigurationError(f"latency.table {name!r} is no function")

    def ask(layer: str, level: Level) -> float:
        call = f"{name}({layer!r}, {str(level)!r})"
        try:
            seconds = function(layer, str(level))
        except Exception as error:
            raise ConfigurationError(f"latency.table: {call} raised {first_line(error)}") from error
        return _seconds(call, seconds)

    rows = {layer: {level: ask(layer, level) for level in own} for layer, own in levels.items()}
    return checked(LatencyTable(rows, ask(WHOLE, DENSE), name))


def checked(table: LatencyTable) -> LatencyTable:
    """The table. Raises DataError for one that no search can use."""
    for layer, row in table.seconds.items():
        if DENSE not in row:
            raise DataError(table.source, f"layer {layer!r} has no dense time")
    if not table.seconds:
        raise DataError(table.source, "has no layers")
    if not table.whole or not any(row[DENSE] for row in table.seconds.values()):
        raise DataError(table.source, "all dense times are 0: nothing was measured")
    if table.base < -1e-4 * table.whole:
        raise DataError(
            table.source, f"the layers' dense times exceed the whole model's, {table.whole:g} s"
        )
    return table


def _seconds(where: str, value: object) -> float:
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        found = float("nan")
    if isinstance(value, (bool, str)) or not (np.isfinite(found) and found >= 0):
        raise DataError(where, f"expected a number, 0 or above; got {value!r:.60}")
    return found


def _ladder_of(level: Level) -> str | None:
    """The kind of levels, from dense on, between whose shares removed the times of `level` lie;
    None for others."""
    sparsity = level.sparsity
    return (
        sparsity.kind
        if sparsity and level.quantization is None and sparsity.kind in _LADDERS
        else None
    )


def _ladder(
    row: dict[Level, float], kind: str, dense: bool = True
) -> tuple[list[Level], np.ndarray, np.ndarray]:
    """The levels of `kind`, and dense, by the shares that they remove, ascending; the shares; their
    seconds."""
    members = (level for level in row if _ladder_of(level) == kind or (dense and level.is_dense))
    levels = sorted(members, key=lambda level: level.fraction_removed)
    return (
        levels,
        np.array([lv.fraction_removed for lv in levels]),
        np.array([row[lv] for lv in levels]),
    )


def _between(row: dict[Level, float], level: Level) -> float:
    kind = _ladder_of(level)
    if kind is None:
        return row[DENSE]
    _, removed, times = _ladder(row, kind)
    return float(np.interp(level.fraction_removed, removed, times))
