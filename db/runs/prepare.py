"""Whether a database holds a run store, and making one; older versions' are brought up to date."""

from __future__ import annotations

import sqlalchemy as sa

from apportion.compressors.errors import StoreError
from apportion.db.runs.schema import METADATA, SCHEMA, VERSION
from apportion.db.runs.upgrades import upgrade

_READABLE = 2
"""The oldest version that is read without being brought up to date."""
_LOCK = 0x6170706F72  # any number that all versions agree on


def prepare(engine: sa.Engine, url: str) -> int:
    """Make the tables, or bring those of an older version up to date, in one transaction that other
    processes wait for; gives their version. Raises StoreError for a newer version's, and for a
    database that holds other tables and not these."""
    with engine.connect().execution_options(exclusive=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        version = _version(connection, url)
        if version is None:
            METADATA.create_all(connection)
            connection.execute(SCHEMA.insert().values(version=VERSION))
        elif version < VERSION:
            upgrade(connection, version, url)
            connection.execute(SCHEMA.update().values(version=VERSION))
    return VERSION


def check(engine: sa.Engine, url: str) -> int:
    """The version of the tables. Raises StoreError where they cannot be read as they are. Changes
    nothing."""
    with engine.connect() as connection:
        version = _version(connection, url)
    if version is None:
        raise StoreError(url, "there is no run store in it; `apportion search` makes one")
    if version < _READABLE:
        raise StoreError(
            url,
            f"its schema has version {version}, which is not read as it is; `apportion search` "
            "with a job of this store brings it up to date",
        )
    return version


def _version(connection: sa.Connection, url: str) -> int | None:
    """Of the tables that are there; None for an empty database."""
    tables = sorted(sa.inspect(connection).get_table_names())
    if SCHEMA.name in tables:
        version = connection.execute(sa.select(SCHEMA.c.version)).scalar()
        if version is not None and version > VERSION:
            raise StoreError(
                url,
                f"its schema has version {version}; this apportion reads versions up to {VERSION}",
            )
        return version
    if tables:
        named = ", ".join(tables[:3]) + (" ..." if len(tables) > 3 else "")
        raise StoreError(
            url, f"it is another application's database (its tables: {named}); name one of its own"
        )
    return None
