"""Latency tables: seconds of every layer at every level, from SPDY's text files, from CSV, or from
a user's own function.

A level that a table does not name costs what dense costs; unstructured levels between two
sparsities of a table are interpolated."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import isotonic_regression

from apportion.compressors.errors import DataError, LevelError
from apportion.compressors.levels import DENSE, Level, Sparsity, parse_level
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


def read_latency(path: str | Path) -> LatencyTable:
    """Read a table: `.csv` with the columns layer, level, seconds (a row with layer `*` gives the
    whole model; lines that begin with # come before them), anything else as SPDY's text. Raises
    DataError, which names file and line."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), getattr(error, "strerror", None) or str(error)) from error
    return _checked(_read_csv(path, text) if path.suffix == ".csv" else _read_spdy(path, text))


def is_function(table: str) -> bool:
    """Whether `latency.table` names a function instead of a file: package.module:function."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", table) is not None


def ask_latency(name: str, levels: Mapping[str, Sequence[Level]]) -> LatencyTable:
    """The table that a user's own function gives: `name` is module:function, called with (layer,
    level), both text, for seconds; with ("*", "dense") for those of the whole dense model. Raises
    CodeError, DataError."""
    function = load_object(name, "latency.table")

    def ask(layer: str, level: Level) -> float:
        return _seconds(f"{name}({layer!r}, {str(level)!r})", function(layer, str(level)))

    rows = {layer: {level: ask(layer, level) for level in own} for layer, own in levels.items()}
    return _checked(LatencyTable(rows, ask(WHOLE, DENSE), name))


def _checked(table: LatencyTable) -> LatencyTable:
    for layer, row in table.seconds.items():
        if DENSE not in row:
            raise DataError(table.source, f"layer {layer!r} has no dense time")
    if not table.seconds:
        raise DataError(table.source, "has no layers")
    if table.base < -1e-4 * table.whole:
        raise DataError(
            table.source, f"the layers' dense times exceed the whole model's, {table.whole:g} s"
        )
    return table


def _read_spdy(path: Path, text: str) -> LatencyTable:
    """`base`, seconds, `prunable`, seconds; then a layer's name and its lines `seconds
    sparsity`."""
    lines = [
        (number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()
    ]
    if len(lines) < 4 or lines[0][1] != ["base"] or lines[2][1] != ["prunable"]:
        raise DataError(
            str(path),
            "not a latency table: expected `base`, seconds, `prunable`, seconds, then the layers",
        )
    rows: dict[str, dict[Level, float]] = {}
    name = ""
    for number, words in lines[4:]:
        if len(words) == 1:
            name = words[0]
            rows[name] = {}
        elif len(words) == 2 and name:
            seconds, share = (_number(path, number, word) for word in words)
            if not 0 <= share < 1:
                raise DataError(
                    f"{path}, line {number}", f"a sparsity lies in [0, 1), got {share:g}"
                )
            level = Level(Sparsity("unstr", round(share, 6))) if share else DENSE
            rows[name][level] = seconds
        else:
            raise DataError(
                f"{path}, line {number}", "expected a layer's name, or seconds and sparsity"
            )
    whole, prunable = (_number(path, *(lines[i][0], lines[i][1][0])) for i in (1, 3))
    summed = sum(row.get(DENSE, 0.0) for row in rows.values())
    if abs(prunable - summed) > 1e-3 * whole:
        raise DataError(
            str(path),
            f"`prunable` says {prunable:g} s, the layers' dense times add up to {summed:g} s",
        )
    # The published tables' own sum decides, so that budgets mean what they mean there.
    return LatencyTable(rows, whole - prunable + summed, str(path))


def _read_csv(path: Path, text: str) -> LatencyTable:
    lines = text.splitlines()
    comments = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    reader = csv.DictReader(lines[comments:])
    if not {"layer", "level", "seconds"} <= set(reader.fieldnames or ()):
        raise DataError(str(path), "expected the columns layer, level, seconds")
    rows: dict[str, dict[Level, float]] = {}
    whole: float | None = None
    for row in reader:
        line = comments + reader.line_num
        seconds = _number(path, line, row["seconds"])
        if row["layer"] == WHOLE:
            whole = seconds
            continue
        try:
            rows.setdefault(row["layer"], {})[parse_level(row["level"])] = seconds
        except LevelError as error:
            raise DataError(f"{path}, line {line}", str(error)) from error
    total = sum(row.get(DENSE, 0.0) for row in rows.values())
    return LatencyTable(rows, total if whole is None else whole, str(path))


def _number(path: Path, line: int, word: str | None) -> float:
    return _seconds(f"{path}, line {line}", word)


def _seconds(where: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not (np.isfinite(number) and number >= 0):
        raise DataError(where, f"expected a number, 0 or above; got {value!r}")
    return number


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
