"""The page as one file that needs nothing else: the figures of one job, opened from disk."""

from __future__ import annotations

import datetime
import html
import json
from pathlib import Path
from typing import Any

from apportion.db.files import write_atomically, write_text
from apportion.db.runs.store import RunStore
from apportion.search.report.figures import job_figures

_FOLDER = Path(__file__).parent


def page_script() -> str:
    return (_FOLDER / "page.js").read_text(encoding="utf-8")


def page(data: dict[str, Any] | None = None) -> str:
    """The HTML page, style and script within; with `data`, of one job; without, it asks its
    server."""
    text = (_FOLDER / "page.html").read_text(encoding="utf-8")
    style, script = (_FOLDER / "page.css").read_text(encoding="utf-8"), page_script()
    embedded = ""
    if data is not None:
        # In a script element nothing ends the text but "</": no other character needs an escape
        # there.
        safe = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
        embedded = f'<script type="application/json" id="data">{safe}</script>'
        text = text.replace(
            "<title>apportion</title>",
            f"<title>apportion: {html.escape(data['summary']['job'])}</title>",
        )
    for mark, content in (
        ("STYLE", f"<style>{style}</style>"),
        ("DATA", embedded),
        ("SCRIPT", f"<script>{script}</script>"),
    ):
        text = text.replace(f"<!--{mark}-->", content)
    return text


def write_report(store: RunStore, job: str, out: Path) -> None:
    """Write the report of a job. Raises StoreError, OutputError."""
    figures = job_figures(store, job) | {
        "written": datetime.datetime.now().astimezone().isoformat(" ", "minutes")
    }
    text = page(figures)
    write_atomically(out, lambda path: write_text(path, text))
