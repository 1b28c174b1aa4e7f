"""The run store's tables, and how a store that an older version made is brought up to date."""

from __future__ import annotations

import sqlalchemy as sa

from apportion.compressors.errors import StoreError

VERSION = 2
_READABLE = 2
"""The oldest version that is read without being brought up to date."""
METADATA = sa.MetaData()
_schema = sa.Table("apportion_schema", METADATA, sa.Column("version", sa.Integer, primary_key=True))
JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("space", sa.Text),
)
RUNS = sa.Table(
    "runs",
    METADATA,
    sa.Column("id", sa.String(80), primary_key=True),
    sa.Column("job", sa.String(16), sa.ForeignKey("jobs.id"), nullable=False, index=True),
    sa.Column("algorithm", sa.String(200), nullable=False),
    sa.Column("parameters", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("evaluations", sa.Float, nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("spent", sa.Float, nullable=False),
    # What its trials add up to, kept with every trial, so that listing runs never reads the trials.
    sa.Column("told", sa.Integer, nullable=False, server_default="0"),
    sa.Column("scored", sa.Integer, nullable=False, server_default="0"),
    sa.Column("asked", sa.Double, nullable=False, server_default="0"),
    sa.Column("best", sa.Double),
    # What the algorithm says of itself in the end: the seconds that it thought, and notes as JSON.
    sa.Column("thought", sa.Double),
    sa.Column("notes", sa.Text),
)
TRIALS = sa.Table(
    "trials",
    METADATA,
    sa.Column("run", sa.String(80), sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("problem", sa.String(64), nullable=False),
    sa.Column("candidate", sa.Text, nullable=False),
    sa.Column("fidelity", sa.Float, nullable=False),
    sa.Column("fitness", sa.Double, nullable=False),
    sa.Column("evaluated", sa.Boolean, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Index("trials_by_candidate", "problem", "candidate"),
)
SELECTION = sa.Table(
    "selection",
    METADATA,
    sa.Column("run", sa.String(80), sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("candidate", sa.String(4000), primary_key=True),
    sa.Column("score", sa.Double, nullable=False),
)
CLAIMS = sa.Table(
    "claims",
    METADATA,
    sa.Column("job", sa.String(16), primary_key=True),
    sa.Column("token", sa.String(32), nullable=False),
    sa.Column("holder", sa.String(200), nullable=False),
    sa.Column("heard", sa.Double, nullable=False),
)
_LOCK = 0x6170706F72  # any number that all versions agree on


def prepare(engine: sa.Engine, url: str) -> None:
    """Make the tables, or bring those of an older version up to date, in one transaction that other
    processes wait for. Raises StoreError for a newer version's, and for a database that holds
    other tables and not these."""
    with engine.connect().execution_options(exclusive=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        version = _version(connection, url)
        METADATA.create_all(connection)
        if version is None:
            connection.execute(_schema.insert().values(version=VERSION))
        elif version < VERSION:
            _upgrade_1(connection)
            connection.execute(_schema.update().values(version=VERSION))


def check(engine: sa.Engine, url: str) -> None:
    """Raises StoreError where a database cannot be read as it is. Changes nothing."""
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


def _version(connection: sa.Connection, url: str) -> int | None:
    """Of the tables that are there; None for an empty database."""
    tables = sorted(sa.inspect(connection).get_table_names())
    if _schema.name in tables:
        version = connection.execute(sa.select(_schema.c.version)).scalar()
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
