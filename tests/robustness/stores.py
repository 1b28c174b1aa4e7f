"""Run stores that are none, and flags that make no sense."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.robustness.case import Case
from tests.robustness.whole import changed, text

_STORE = ("--store", "sqlite:///FOLDER/runs.sqlite")
_COMMANDS = {
    "runs": ("runs",),
    "compare": ("compare",),
    "show": ("show", "RUN"),
    "report": ("report", "RUN", "-o", "FOLDER/page.html"),
}


def _sql(*statements: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        with sqlite3.connect(folder / "runs.sqlite") as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    return prepare


def _foreign(folder: Path) -> None:
    (folder / "runs.sqlite").unlink()
    _sql("create table users (name text)")(folder)


_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: (f / "runs.sqlite").unlink(), "runs.sqlite"),
    "text": (text("runs.sqlite", "hello, this is no database at all"), "runs.sqlite"),
    "cut": (
        lambda f: (f / "runs.sqlite").write_bytes((f / "runs.sqlite").read_bytes()[:3000]),
        "runs.sqlite",
    ),
    "another application's": (_foreign, "runs.sqlite"),
}
_URLS = {
    "nonsense": "nonsense",
    "unknown scheme": "nosuch://host/db",
    "no driver": "oracle://host/db",
    "empty": "",
    "a folder": "sqlite:///FOLDER",
    "port out of range": "postgresql://user:pass@host:99999999/db",
}
_CONTENT: dict[str, str] = {
    "a job that is no JSON": "update jobs set spec = '{'",
    "a job that is a list": "update jobs set spec = '[]'",
    "a job that lacks a section": "update jobs set spec = '{\"workload\": {}}'",
    "parameters that are no JSON": "update runs set parameters = '{'",
    "a candidate of text": "update trials set candidate = 'abc'",
    "a candidate that is short": "update trials set candidate = '[1]'",
}
_FLAGS: list[tuple[tuple[str, ...], str]] = [
    (("search",), "job"),
    (("serch", "FOLDER/job.yaml"), "serch"),
    (("search", "FOLDER/none.yaml"), "none.yaml"),
    (("search", "FOLDER"), "not a file"),
    (("search", "FOLDER/" + "x" * 5000), "File name too long"),
    (("search", "FOLDER/job.yaml", "--jsn"), "--jsn"),
    (("build", "FOLDER/table.yaml"), "a model is needed"),
    (("show",), "RUN"),
    (("show", "nothing-s0", *_STORE), "nothing-s0"),
    (("show", "x" * 5000, *_STORE), "xxx"),
    (("compare", "nothing-s0", *_STORE), "nothing-s0"),
    (("export", "nothing-s0", "-o", "FOLDER/out", *_STORE), "nothing-s0"),
    (("export", "RUN", "-o", "FOLDER/out", "--format", "zip", *_STORE), "zip"),
    (("export", "RUN", "-o", "FOLDER/out", "--recover", "magic", *_STORE), "magic"),
    (("export", "RUN", "-o", "FOLDER/job.yaml", *_STORE), "job.yaml"),
    (("import", "FOLDER/none.json", "FOLDER/job.yaml", "-o", "FOLDER/out"), "none.json"),
    (("import", "FOLDER/profile.json", "FOLDER/none.yaml", "-o", "FOLDER/out"), "none.yaml"),
    (("import", "FOLDER/profile.json", "FOLDER/table.yaml", "-o", "FOLDER/out"), "a model is"),
    (("recipe", "nothing"), "nothing"),
    (("sensitivity", "FOLDER/none.yaml"), "none.yaml"),
    (("sensitivity", "FOLDER/table.yaml"), "a model is needed"),
    (("latency", "measure", "FOLDER/none.yaml", "-o", "FOLDER/t.csv"), "none.yaml"),
    (
        ("latency", "measure", "FOLDER/job.yaml", "-o", "FOLDER/t.csv", "--runtime", "abacus"),
        "abacus",
    ),
    (("latency", "measure", "FOLDER/job.yaml", "-o", "FOLDER/t.csv", "--batch", "0"), "batch"),
    (("latency", "measure", "FOLDER/job.yaml", "-o", "FOLDER/t.csv", "--threads", "x"), "threads"),
    (("latency", "check", "FOLDER/job.yaml", "--table", "FOLDER/none.csv"), "none.csv"),
    (("latency", "check", "FOLDER/job.yaml"), "--table"),
    (("pack", "FOLDER/none.yaml", "-o", "FOLDER/p"), "none.yaml"),
    (("report", "RUN", "-o", "FOLDER/no\0such.html", *_STORE), "cannot write"),
]


def cases(run: str) -> Iterator[Case]:
    """`run`: the id of the run in the whole folder's store."""
    for name, (prepare, says) in _FILES.items():
        for what, command in _COMMANDS.items():
            arguments = tuple(run if part == "RUN" else part for part in command)
            yield Case(f"store {name}: {what}", prepare, (*arguments, *_STORE), says)
    for name, url in _URLS.items():
        for what in ("runs", "compare"):
            arguments = (what, "--store", url)
            yield Case(f"store URL {name}: {what}", lambda _: None, arguments, "store")
        if url:
            prepare = changed("store", to=url, name="table.yaml")
            command = ("search", "FOLDER/table.yaml")
            yield Case(f"store URL {name}: search", prepare, command, "store")
    for name, statement in _CONTENT.items():
        arguments = ("show", run, *_STORE)
        yield Case(f"store with {name}", _sql(statement), arguments, "store|runs.sqlite|run ")
    for flags, says in _FLAGS:
        arguments = tuple(run if part == "RUN" else part for part in flags)
        yield Case(f"flags: {' '.join(flags)[:70]}", lambda _: None, arguments, says)
