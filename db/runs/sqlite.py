"""SQLite files: their URLs, whatever letters a path has, and how they are opened."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import sqlalchemy as sa

from apportion.compressors.errors import StoreError

_URL = re.compile(r"sqlite(\+pysqlite)?:")


def sqlite_url(path: str | Path) -> str:
    """URL of the run store in the file `path`, a relative one in the current folder. What means
    something else in a URL (`%`, `?`, `#`) is escaped; spaces and letters of all alphabets stay."""
    escaped = re.sub(r"[%?#]", lambda match: f"%{ord(match[0]):02X}", str(Path(path).absolute()))
    return f"sqlite:///{escaped}"


def sqlite_file(url: str) -> Path | None:
    """The file that a SQLite URL names, `~/` at its beginning being the home folder; None for a URL
    of another kind. Raises StoreError for a store in memory, which nothing could find again, and
    for a URL with options."""
    if not _URL.match(url):
        return None
    scheme, _, rest = url.partition("://")
    database, options, _ = rest.partition("?")
    name = unquote(database.removeprefix("/"))
    if not rest or name in ("", ":memory:") or name.startswith("file:"):
        raise StoreError(
            url,
            "a store in memory is lost with its process, and the runs in it cannot be resumed; "
            "name a file: sqlite:///FILE",
        )
    if not database.startswith("/"):
        raise StoreError(url, f"three slashes stand before the file: {scheme}:///{rest}")
    if options:
        raise StoreError(url, "'?' begins options, and a file has none; a '?' in its name is %3F")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise StoreError(url, f"there is no home folder that ~ could be ({error})") from error


def sqlite_engine(url: str, file: Path, reading: bool) -> sa.Engine:
    """An engine on `file`; for `reading` one that can change nothing in it. Raises StoreError where
    a file to be read is missing."""
    if reading and not file.is_file():
        raise StoreError(url, "no such file; `apportion search` makes it beside the job file")
    address = sa.URL.create("sqlite", database=str(file))
    if reading:
        engine = sa.create_engine(address, creator=lambda: _open_to_read(file))
    else:
        engine = sa.create_engine(address)
    sa.event.listen(engine, "connect", _tune)
    sa.event.listen(engine, "begin", _begin)
    return engine


def write_ahead(engine: sa.Engine) -> None:
    """From now on readers do not block the writer. The file remembers it."""
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


def _open_to_read(file: Path) -> sqlite3.Connection:
    """Raises sqlite3.Error. In a folder that takes no files SQLite cannot keep what readers and a
    writer share. With nothing in the write-ahead log there is no writer, as it could not write
    either, and the file is read as one that does not change."""
    address = f"file:{quote(str(file.absolute()))}?mode=ro"
    try:
        return _looked_into(address)
    except sqlite3.OperationalError:
        log = file.with_name(file.name + "-wal")
        if os.access(file.parent, os.W_OK) or (log.exists() and log.stat().st_size):
            raise
    return _looked_into(f"{address}&immutable=1")


def _looked_into(address: str) -> sqlite3.Connection:
    # Threads: SQLAlchemy's pool hands a connection to one at a time.
    connection = sqlite3.connect(address, uri=True, check_same_thread=False)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _tune(connection: Any, _record: Any) -> None:
    # Python's sqlite3 would begin transactions on its own, and not before a table is made.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.execute("PRAGMA foreign_keys=ON")  # as PostgreSQL: no run without its job
    # A killed process loses nothing; a power cut at most the last commits.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    exclusive = connection.get_execution_options().get("exclusive")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if exclusive else "BEGIN")
