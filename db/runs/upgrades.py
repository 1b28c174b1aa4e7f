"""How a store that an older version made is brought up to date."""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa

from apportion.compressors.errors import StoreError
from apportion.db.runs.rows import to_digest
from apportion.db.runs.schema import JOBS, METADATA, RUNS, TRIALS

_STALE_2 = 60.0
"""Seconds without a sign of life after which version 2 gave a claim up."""
_TEXTS = {
    "jobs": ("id",),
    "runs": ("id", "job", "algorithm", "state"),
    "trials": ("run", "problem"),
}
"""Columns of limited length in version 2. SQLite did not keep to them."""


def upgrade(connection: sa.Connection, version: int, url: str) -> None:
    """From `version` to the present one, inside the caller's transaction. Raises StoreError while a
    process of version 2 works on a job."""
    if version == 1:
        _upgrade_1(connection)
    else:
        _refuse_live_claims(connection, url)
    _upgrade_2(connection)


def _upgrade_1(connection: sa.Connection) -> None:
    """To version 2: runs say themselves what their trials add up to, how long their algorithm
    thought, and its notes; jobs hold their space. (The table of claims is new, and made
    already.)"""
    columns = (
        RUNS.c.told,
        RUNS.c.scored,
        RUNS.c.asked,
        RUNS.c.best,
        RUNS.c.thought,
        RUNS.c.notes,
        JOBS.c.space,
    )
    for column in columns:
        definition = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {definition}")
    own = TRIALS.c.run == RUNS.c.id
    counted = {
        "told": sa.select(sa.func.count()).where(own),
        "scored": sa.select(
            sa.func.coalesce(sa.func.sum(sa.cast(TRIALS.c.evaluated, sa.Integer)), 0)
        ).where(own),
        "asked": sa.select(sa.func.coalesce(sa.func.sum(TRIALS.c.fidelity), 0.0)).where(own),
        "best": sa.select(sa.func.min(TRIALS.c.fitness)).where(own, TRIALS.c.fidelity == 1.0),
    }
    connection.execute(
        RUNS.update().values({name: query.scalar_subquery() for name, query in counted.items()})
    )


def _refuse_live_claims(connection: sa.Connection, url: str) -> None:
    """A process of version 2 would lose its claim without a word."""
    rows: Any = connection.exec_driver_sql("SELECT job, holder, heard FROM claims").all()
    for job, holder, heard in rows:
        if abs(time.time() - heard) < _STALE_2:
            raise StoreError(
                url,
                f"an older version of apportion works on job {job} ({holder}), and the store must "
                f"be brought up to date; stop that first, or try again in {_STALE_2:.0f} s",
            )


def _upgrade_2(connection: sa.Connection) -> None:
    """To version 3: candidates are found by their digest; text is as long as it is; claims beat."""
    run = connection.exec_driver_sql
    if connection.dialect.name == "sqlite":
        raw: Any = connection.connection.dbapi_connection
        raw.create_function("apportion_digest", 1, to_digest, deterministic=True)
        digest = "apportion_digest(candidate)"
    else:
        digest = "substr(encode(sha256(convert_to(candidate, 'UTF8')), 'hex'), 1, 32)"
        for table, columns in _TEXTS.items():
            for column in columns:
                run(f"ALTER TABLE {table} ALTER COLUMN {column} TYPE TEXT")
    run("ALTER TABLE trials ADD COLUMN digest TEXT NOT NULL DEFAULT ''")
    run(f"UPDATE trials SET digest = {digest}")
    run("DROP INDEX trials_by_candidate")
    for index in TRIALS.indexes:
        index.create(connection)
    run("ALTER TABLE selection RENAME TO selection_2")
    run("DROP TABLE IF EXISTS claims")
    METADATA.create_all(connection)
    run(
        f"INSERT INTO selection (run, digest, candidate, score) SELECT run, {digest}, candidate, "
        "score FROM selection_2 WHERE run IN (SELECT id FROM runs)"
    )
    run("DROP TABLE selection_2")
