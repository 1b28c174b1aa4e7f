"""Connections to a PostgreSQL server on which every wait has an end: a server that is frozen, or a
network that swallows packets, answers nothing and breaks nothing off. Importing this needs
psycopg."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg
import sqlalchemy as sa

from apportion.compressors.errors import StoreError

CONNECTED = 10
"""Seconds until a server must have let us in."""
ANSWERED = 60.0
"""Seconds until it must have answered a statement, by its clock and by ours."""
PREPARED = 600.0
"""The same while tables are made or brought up to date, which others wait for."""
_DRIVER = "postgresql+psycopg"


def server_engine(url: str, reading: bool, answered: float | None = None) -> sa.Engine:
    """An engine on the server at `url`; postgresql:// is what users write. `answered`: seconds for
    a statement, default ANSWERED. Raises StoreError for another kind of URL."""
    made = sa.make_url(url)
    if made.drivername in ("postgresql", "postgres"):
        made = made.set(drivername=_DRIVER)
    if made.drivername != _DRIVER:
        raise StoreError(url, "a run store is sqlite:///FILE or postgresql://...")
    within = ANSWERED if answered is None else answered
    engine = sa.create_engine(made, execution_options={"postgresql_readonly": reading})

    def connect(_dialect: Any, _record: Any, arguments: Any, given: dict[str, Any]) -> Any:
        connection = _Connection.connect(*arguments, **{**_limits(), **given})
        connection.answered = within
        connection.autocommit = True
        connection.execute(f"SET statement_timeout = {int(1000 * within)}")
        connection.autocommit = False
        return connection

    sa.event.listen(engine, "do_connect", connect)
    return engine


def _limits() -> dict[str, Any]:
    """libpq's own: until it has connected, and until it takes a silent peer for gone."""
    return {
        "connect_timeout": CONNECTED,
        "keepalives": 1,
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": int(1000 * ANSWERED),
    }


class _Connection(psycopg.Connection[Any]):
    """Breaks itself off when the server does not answer in time. libpq has no limit for that: the
    keepalives of a frozen process are answered by its kernel."""

    answered = ANSWERED

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        return super().wait(self._bounded(gen), *arguments, **options)

    def _bounded(self, gen: Any) -> Generator[Any, Any, Any]:
        """psycopg asks `gen` again whenever something has come, and several times a second where
        nothing has."""
        end = time.monotonic() + self.answered
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > end:
                    gen.close()
                    self.pgconn.finish()
                    raise psycopg.OperationalError(
                        f"the server did not answer within {self.answered:.0f} s"
                    )
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value
