"""Columns of csv, jsonl and parquet files, read by Hugging Face's `datasets`."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apportion.compressors.errors import DataError, first_line
from apportion.evaluators.data.files import local_file


def read_columns(
    kind: str, location: str, names: Sequence[str | int], part: str
) -> list[list[Any]]:
    """The values of some columns, a list for each, in the order of the rows.

    Args:
        kind: csv, jsonl or parquet. Values of csv files are text, as they stand there.
        location: a file, or a URL.
        names: of the columns; numbers from 0 for csv files without a line of names.
        part: what the file is for: calibration, say.

    Raises:
        DataError: there is no such file, it cannot be read, lacks a column, has no rows, or a row
            has no value in one of them.
    """
    where = f"workload.data.{part}"
    path = local_file(location)
    if not path.is_file():
        raise DataError(where, f"{path}: no such file")
    table = _table(kind, path, names, where) if path.stat().st_size else None
    if table is None or not len(table):
        raise DataError(where, f"{path} has no rows")
    if missing := [name for name in names if str(name) not in table.column_names]:
        raise DataError(
            where,
            f"{path} has no column {missing[0]!r}; its columns are {', '.join(table.column_names)}",
        )
    # of Arrow itself: `datasets` takes many times as long
    columns = [table.data.column(str(name)).to_pylist() for name in names]
    for name, column in zip(names, columns, strict=True):
        for row, value in enumerate(column):
            if value is None or value == "":
                raise DataError(where, f"{path}: row {row + 1} has nothing in column {name!r}")
    return columns


def _table(kind: str, path: Path, names: Sequence[str | int], where: str) -> Any:
    """A table of `datasets` in memory, numbers as its columns' names where they have none; None for
    a file without rows."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "workload.data.kind", f"{kind} files need datasets: install apportion[text]"
        ) from error
    with _quiet(datasets), tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"cache_dir": folder, "keep_in_memory": True}
        if kind == "csv":
            # as they stand there: 007 is no seven, and NA no missing value
            options |= {"na_filter": False, "converters": dict.fromkeys(names, str)}
            if any(isinstance(name, int) for name in names):
                options["header"] = None
        suffix = "json" if kind == "jsonl" else kind
        try:
            return getattr(datasets.Dataset, f"from_{suffix}")(str(path), **options)
        except Exception as error:  # datasets, pyarrow and pandas each raise their own
            if "corresponds to no data" in str(error):
                return None
            raise DataError(
                where, f"{path} is not readable as {kind} ({first_line(_cause(error))})"
            ) from error


def _cause(error: BaseException) -> BaseException:
    """What was raised first: `datasets` wraps it in errors that say less."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the progress bars of `datasets`, and without what it says of errors that it
    raises."""
    shown, log = not datasets.are_progress_bars_disabled(), logging.getLogger("datasets")
    level = log.level
    datasets.disable_progress_bars()
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
