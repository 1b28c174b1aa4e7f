"""All jobs of a run store at one look, for lists that are drawn again and again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from apportion.db.runs.schema import CLAIMS, JOBS, RUNS
from apportion.db.runs.sql import SqlDatabase

_CHUNK = 400
_TOLD = (
    sa.func.count(RUNS.c.id),
    sa.func.coalesce(sa.func.sum(RUNS.c.told), 0),
    sa.func.coalesce(sa.func.sum(RUNS.c.asked), 0.0),
    sa.func.coalesce(sa.func.sum(RUNS.c.evaluations), 0.0),
    sa.func.min(RUNS.c.best),
    sa.func.min(RUNS.c.state),
    sa.func.max(RUNS.c.state),
    sa.func.max(CLAIMS.c.token),
)


def overview(database: SqlDatabase) -> dict[str, tuple[Any, ...]]:
    """Job id, the oldest first -> runs, trials told, evaluations asked, and allowed, best fitness,
    the first and the last of its runs' states by the alphabet, the claim on it. In one query."""
    joined = JOBS.outerjoin(RUNS, RUNS.c.job == JOBS.c.id).outerjoin(
        CLAIMS, CLAIMS.c.job == JOBS.c.id
    )
    query = sa.select(JOBS.c.id, *_TOLD).select_from(joined).group_by(JOBS.c.id, JOBS.c.created)
    rows = database.rows(query.order_by(JOBS.c.created, JOBS.c.id))
    return {row[0]: tuple(row[1:]) for row in rows}


def about(
    database: SqlDatabase, jobs: Sequence[str]
) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Job id -> its spec, and its algorithms in the order in which their runs were made."""
    found: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for start in range(0, len(jobs), _CHUNK):
        some = jobs[start : start + _CHUNK]
        for row in database.rows(sa.select(JOBS.c.id, JOBS.c.spec).where(JOBS.c.id.in_(some))):
            found[row.id] = (json.loads(row.spec), [])
        query = sa.select(RUNS.c.job, RUNS.c.algorithm).where(RUNS.c.job.in_(some))
        for row in database.rows(query.order_by(RUNS.c.created, RUNS.c.id)):
            names = found[row.job][1]
            if row.algorithm not in names:
                names.append(row.algorithm)
    return found
