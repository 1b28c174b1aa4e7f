"""Latency tables in files: SPDY's text, and CSV."""

from __future__ import annotations

import logging
from pathlib import Path

from apportion.compressors.errors import DataError, DocumentError, LevelError
from apportion.compressors.levels import DENSE, Level, Sparsity, parse_level
from apportion.db.documents.csv_reader import csv_rows
from apportion.db.documents.text import number, read_text
from apportion.evaluators.costs.latency import WHOLE, LatencyTable, checked

_ROUNDED, _MISSING = 1e-3, 0.05
"""Shares of the whole model's time: by how much the sum of the layers' dense times may differ from
what a published table says they are, without a word, and at all."""

_DECIMALS = 6
"""Of a published table's sparsities."""

log = logging.getLogger(__name__)


def read_latency(path: str | Path) -> LatencyTable:
    """Read a table: `.csv` with the columns layer, level, seconds (a row with layer `*` gives the
    whole model; lines that begin with # come before them), anything else as SPDY's text. Raises
    DataError, which names file and line."""
    path = Path(path)
    read = _read_csv if path.suffix.lower() == ".csv" else _read_spdy
    try:
        return checked(read(path, read_text(path)))
    except DocumentError as error:
        raise DataError(str(path), str(error)) from error


def _read_spdy(path: Path, text: str) -> LatencyTable:
    """`base`, seconds, `prunable`, seconds; then a layer's name and its lines `seconds
    sparsity`."""
    lines = [
        (line, words) for line, row in enumerate(text.split("\n"), 1) if (words := row.split())
    ]
    if len(lines) < 4 or lines[0][1] != ["base"] or lines[2][1] != ["prunable"]:
        raise DataError(
            str(path),
            "not a latency table: expected `base`, seconds, `prunable`, seconds, then the layers",
        )
    rows: dict[str, dict[Level, float]] = {}
    name = ""
    for line, words in lines[4:]:
        if len(words) == 1:
            name = words[0]
            if name in rows:
                raise DocumentError(f"line {line}: layer {name!r} stands twice")
            rows[name] = {}
        elif len(words) == 2 and name:
            seconds, share = (_number(line, word) for word in words)
            if not 0 <= round(share, _DECIMALS) < 1:
                raise DocumentError(f"line {line}: a sparsity lies in [0, 1), got {share:g}")
            _add(rows, line, name, _unstructured(share), seconds)
        else:
            raise DocumentError(f"line {line}: expected a layer's name, or seconds and sparsity")
    whole, prunable = (_number(lines[i][0], lines[i][1][0]) for i in (1, 3))
    summed = sum(row.get(DENSE, 0.0) for row in rows.values())
    if abs(prunable - summed) > _ROUNDED * whole:
        what = f"`prunable` says {prunable:g} s, the layers' dense times add up to {summed:g} s"
        if abs(prunable - summed) > _MISSING * whole:
            raise DataError(str(path), f"{what}: layers or levels are missing")
        log.warning("%s: %s; the layers' own times are used, %g s together", path, what, summed)
    # The published tables' own sum decides, so that budgets mean what they mean there.
    return LatencyTable(rows, whole - prunable + summed, str(path))


def _unstructured(share: float) -> Level:
    share = round(share, _DECIMALS)
    return Level(Sparsity("unstr", share)) if share else DENSE


def _read_csv(path: Path, text: str) -> LatencyTable:
    rows: dict[str, dict[Level, float]] = {}
    whole: float | None = None
    for line, row in csv_rows(text, ("layer", "level", "seconds")):
        seconds = _number(line, row["seconds"])
        try:
            level = parse_level(row["level"])
        except LevelError as error:
            raise DocumentError(f"line {line}: {error}") from error
        if row["layer"] != WHOLE:
            _add(rows, line, row["layer"], level, seconds)
        elif level != DENSE:
            raise DocumentError(f"line {line}: of the whole model only dense has a time")
        elif whole is not None:
            raise DocumentError(f"line {line}: layer '*' stands twice")
        else:
            whole = seconds
    total = sum(row.get(DENSE, 0.0) for row in rows.values())
    return LatencyTable(rows, total if whole is None else whole, str(path))


def _add(
    rows: dict[str, dict[Level, float]], line: int, layer: str, level: Level, seconds: float
) -> None:
    """Keep a row. Raises DocumentError for a second one of the same layer and level."""
    row = rows.setdefault(layer, {})
    if level in row:
        raise DocumentError(f"line {line}: level {str(level)!r} of layer {layer!r} stands twice")
    row[level] = seconds


def _number(line: int, word: str) -> float:
    try:
        value = number(word)
    except DocumentError as error:
        raise DocumentError(f"line {line}: {error}") from error
    if value < 0:
        raise DocumentError(f"line {line}: expected a number, 0 or above; got {word!r}")
    return value
