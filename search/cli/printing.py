"""How commands print: text or JSON, and tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from apportion.db.files import finite

_ANY_WIDTH = 1 << 20


def show(options: argparse.Namespace, content: Any, text: Callable[[], None]) -> None:
    if options.json:
        print(json.dumps(finite(content), indent=1))
    else:
        text()


def table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Nothing is cut, on a narrow terminal lines wrap: an id that is cut cannot be given to another
    command. No text is taken for markup."""
    made = Table(box=None, header_style="bold")
    for column in columns:
        numeric = (
            bool(rows)
            and isinstance(rows[0][column], (int, float))
            and not isinstance(rows[0][column], bool)
        )
        justify: Any = "right" if numeric else "left"
        made.add_column(Text(cell(column.replace("_", " "))), justify=justify, no_wrap=True)
    for row in rows:
        made.add_row(*(Text(cell(row[column])) for column in columns))
    console = Console()
    widest = console.measure(made, options=console.options.update_width(_ANY_WIDTH)).maximum
    Console(width=max(1, widest)).print(made)


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.5g}" if isinstance(value, float) else plain(str(value))


def plain(text: str) -> str:
    """The same with control characters as escapes: a terminal would obey them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
