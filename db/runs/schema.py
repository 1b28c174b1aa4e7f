"""The run store's tables."""

from __future__ import annotations

import sqlalchemy as sa

VERSION = 3
METADATA = sa.MetaData()
SCHEMA = sa.Table("apportion_schema", METADATA, sa.Column("version", sa.Integer, primary_key=True))
JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("space", sa.Text),
)
RUNS = sa.Table(
    "runs",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("job", sa.Text, sa.ForeignKey("jobs.id"), nullable=False, index=True),
    sa.Column("algorithm", sa.Text, nullable=False),
    sa.Column("parameters", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("evaluations", sa.Float, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
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
    sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("problem", sa.Text, nullable=False),
    sa.Column("candidate", sa.Text, nullable=False),
    # Of the candidate (rows.to_digest): what it is found by.
    sa.Column("digest", sa.Text, nullable=False, server_default=""),
    sa.Column("fidelity", sa.Float, nullable=False),
    sa.Column("fitness", sa.Double, nullable=False),
    sa.Column("evaluated", sa.Boolean, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Index("trials_by_digest", "problem", "digest"),
)
SELECTION = sa.Table(
    "selection",
    METADATA,
    sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("candidate", sa.Text, nullable=False),
    sa.Column("score", sa.Double, nullable=False),
)
CLAIMS = sa.Table(
    "claims",
    METADATA,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("token", sa.Text, nullable=False),
    # Who it is: for people, and for a process beside it (process.Process, JSON).
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("process", sa.Text, nullable=False),
    # Counts up while its holder lives.
    sa.Column("beat", sa.BigInteger, nullable=False),
)
