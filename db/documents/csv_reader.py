"""CSV as spreadsheets of many countries write it: separated by commas, semicolons or tabs."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence

from apportion.compressors.errors import DocumentError

_SEPARATORS = ",;\t"


def csv_rows(text: str, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and row (column -> what stands there, without spaces around it) of a table whose
    first line names the columns, `needed` ones among them. Lines that begin with # before that, and
    empty lines, are left out. Raises DocumentError for a row that has more or fewer values than
    there are columns."""
    lines = text.split("\n")
    skipped = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    header = lines[skipped] if skipped < len(lines) else ""
    separator = max(_SEPARATORS, key=header.count)
    reader = csv.reader(lines[skipped:], delimiter=separator, skipinitialspace=True, strict=True)
    columns: list[str] = []
    try:
        for values in reader:
            line, row = skipped + reader.line_num, [value.strip() for value in values]
            if not columns:
                columns = _columns(row, needed)
            elif any(row):
                yield line, _row(line, row, columns, separator)
    except csv.Error as error:
        raise DocumentError(f"line {skipped + reader.line_num}: {error}") from error
    if not columns:
        raise DocumentError(f"expected the columns {', '.join(needed)}")


def _columns(row: list[str], needed: Sequence[str]) -> list[str]:
    if missing := [name for name in needed if name not in row]:
        raise DocumentError(
            f"expected the columns {', '.join(needed)}; {missing[0]!r} is missing (found: "
            f"{', '.join(row)!r:.80})"
        )
    if twice := [name for name in row if name and row.count(name) > 1]:
        raise DocumentError(f"the column {twice[0]!r} stands twice")
    return row


def _row(line: int, row: list[str], columns: list[str], separator: str) -> dict[str, str]:
    if len(row) == len(columns):
        return dict(zip(columns, row, strict=True))
    hint = "; numbers are written with a point, as in 0.25" if separator == "," else ""
    raise DocumentError(f"line {line}: {len(row)} values for {len(columns)} columns{hint}")
