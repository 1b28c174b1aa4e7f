"""A connection to a SQL database that outlives the server's restarts."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    IntegrityError,
    OperationalError,
    SQLAlchemyError,
)

from apportion.compressors.errors import StoreError
from apportion.db.runs.sqlite import sqlite_engine, sqlite_file, write_ahead

_T = TypeVar("_T")
PATIENCE = 120.0
"""Seconds to wait for a server that was there before."""
_UNIQUE_VIOLATION = "23505"

Guard = tuple[sa.Update, StoreError]
"""A statement that must change a row, and what is raised where it does not."""


class SqlDatabase:
    """All methods raise StoreError when the database refuses, or cannot be reached or does not
    answer (server.py says how long): at once when it is opened, after `PATIENCE` later. `prepare`
    makes what must be there, and gives its `version`; for `reading` it only looks, and nothing can
    be written."""

    def __init__(
        self, url: str, prepare: Callable[[sa.Engine, str], int], reading: bool = False
    ) -> None:
        self.url = url
        file = sqlite_file(url)
        try:
            if file is None:
                self._engine = self._on_server(prepare, reading)
            else:
                self._engine = sqlite_engine(url, file, reading)
                self.version = prepare(self._engine, url)
                if not reading:
                    write_ahead(self._engine)
        except (SQLAlchemyError, ImportError, sqlite3.Error) as error:
            raise StoreError(url, _reason(error)) from error
        _say_nothing_of_interrupts(self._engine.pool)

    def _on_server(self, prepare: Callable[[sa.Engine, str], int], reading: bool) -> sa.Engine:
        from apportion.db.runs.server import PREPARED, server_engine

        first = server_engine(self.url, reading, None if reading else PREPARED)
        try:
            self.version = prepare(first, self.url)
        finally:
            first.dispose()
        return server_engine(self.url, reading)

    def close(self) -> None:
        self._engine.dispose()

    def rows(self, query: Any) -> Sequence[sa.Row[Any]]:
        def read() -> Sequence[sa.Row[Any]]:
            with self._engine.connect() as connection:
                return list(connection.execute(query))

        return self._patiently(read)

    def write(self, *statements: sa.Executable, guard: Guard | None = None) -> list[int]:
        """All of them or none; the rows that each changed. With a `guard`, none where its statement
        changes no row: then its error is raised. Raises `Refused` for a row that is there
        already."""

        def commit() -> list[int]:
            with self._engine.begin() as connection:
                if guard is not None and connection.execute(guard[0]).rowcount != 1:
                    raise guard[1]
                return [int(connection.execute(statement).rowcount) for statement in statements]

        return self._patiently(commit)

    def _patiently(self, work: Callable[[], _T]) -> _T:
        end = time.monotonic() + PATIENCE
        pause, again = 0.1, False
        while True:
            try:
                return work()
            except IntegrityError as error:
                raise (
                    Refused(self.url, _reason(error), again)
                    if _is_taken(error)
                    else StoreError(self.url, _reason(error))
                ) from error
            except SQLAlchemyError as error:
                if not self._is_away(error) or time.monotonic() > end:
                    raise StoreError(self.url, _reason(error)) from error
            time.sleep(pause)
            pause, again = min(2 * pause, 5.0), True

    def _is_away(self, error: SQLAlchemyError) -> bool:
        """Whether the server broke the connection off or does not answer now; a file has no
        server."""
        if self._engine.dialect.name == "sqlite" or not isinstance(error, DBAPIError):
            return False
        return error.connection_invalidated or isinstance(error, OperationalError)


class Refused(StoreError):
    """A row with that key is there already. `again`: this was not the first attempt, and the row
    may be the first one's, which the server committed before it went away."""

    def __init__(self, url: str, reason: str, again: bool) -> None:
        super().__init__(url, reason)
        self.again = again


def _is_taken(error: IntegrityError) -> bool:
    """Whether a row with the same key is there already; other rules may be broken too."""
    original = error.orig
    if isinstance(original, sqlite3.IntegrityError):
        return original.sqlite_errorcode in (
            sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
            sqlite3.SQLITE_CONSTRAINT_UNIQUE,
        )
    return getattr(original, "sqlstate", None) == _UNIQUE_VIOLATION


def _say_nothing_of_interrupts(pool: sa.Pool) -> None:
    """Ctrl-C while a connection goes back to the pool: SQLAlchemy closes it, raises, and logs a
    traceback, which would stand above the one line that the command says."""
    of = type(pool)
    logging.getLogger(f"{of.__module__}.{of.__name__}").addFilter(_no_interrupt)


def _no_interrupt(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], KeyboardInterrupt)


def _reason(error: Exception) -> str:
    """The database's own words, without SQLAlchemy's statement dump."""
    original = error.orig if isinstance(error, DatabaseError) and error.orig is not None else error
    return (
        str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__
    )
