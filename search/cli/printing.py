"""How commands print: text or JSON, and tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from apportion.db.files import finite


def show(options: argparse.Namespace, content: Any, text: Callable[[], None]) -> None:
    if options.json:
        print(json.dumps(finite(content), indent=1))
    else:
        text()


def table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    made = Table(box=None, header_style="bold")
    for column in columns:
        numeric = (
            bool(rows)
            and isinstance(rows[0][column], (int, float))
            and not isinstance(rows[0][column], bool)
        )
        made.add_column(
            column.replace("_", " "), justify="right" if numeric else "left", no_wrap=True
        )
    for row in rows:
        made.add_row(*(cell(row[column]) for column in columns))
    width = None if sys.stdout.isatty() else 200
    Console(width=width).print(made)


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
