"""Claims: who works on a job, so that a second one is told instead of let in."""

from __future__ import annotations

import os
import platform
import secrets
import threading
from types import TracebackType

import sqlalchemy as sa

from apportion.compressors.errors import StoreError
from apportion.db.runs.schema import CLAIMS
from apportion.db.runs.sql import Refused, SqlDatabase

BEAT = 5.0
"""Seconds between two signs of life."""
STALE = 60.0
"""Seconds without one after which a claim is anyone's. That of a process that has ended on this
machine is so at once."""


class Lease:
    """Holds `job` inside a `with` block. Raises StoreError, which names the holder, where another
    process does. What keeps a run's trials apart is their numbering; this is so that nobody finds
    out late."""

    def __init__(self, database: SqlDatabase, job: str) -> None:
        self._database, self._job = database, job
        self._token = secrets.token_hex(16)
        self._over = threading.Event()
        self._beats = threading.Thread(target=self._beat, name=f"claim {job}", daemon=True)

    def __enter__(self) -> Lease:
        row = {
            "job": self._job,
            "token": self._token,
            "holder": _myself(),
            "heard": self._database.now(),
        }
        try:
            self._database.write(CLAIMS.insert().values(**row))
        except Refused:
            self._take_over(row)
        self._beats.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._beats.join()
        try:
            self._database.write(
                CLAIMS.delete().where(CLAIMS.c.job == self._job, CLAIMS.c.token == self._token)
            )
        except StoreError:
            if error is None:
                raise  # else what went wrong first is what counts; the claim goes stale

    def _take_over(self, row: dict[str, object]) -> None:
        found = self._database.rows(sa.select(CLAIMS).where(CLAIMS.c.job == self._job))
        if found:
            held = found[0]
            silent = self._database.now() - held.heard
            if silent < STALE and not _has_ended(held.holder):
                raise StoreError(
                    self._database.url,
                    f"job {self._job} is being worked on by {held.holder}, last heard of "
                    f"{silent:.0f} s ago; cancel that first, "
                    f"or wait until it has been silent for {STALE:.0f} s",
                )
            same = sa.and_(CLAIMS.c.job == self._job, CLAIMS.c.token == held.token)
            if self._database.write(CLAIMS.update().where(same).values(**row)) == [1]:
                return
        else:  # released between the two statements
            self._database.write(CLAIMS.insert().values(**row))
            return
        raise StoreError(
            self._database.url, f"job {self._job} was claimed by another process this moment"
        )

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            try:
                own = sa.and_(CLAIMS.c.job == self._job, CLAIMS.c.token == self._token)
                self._database.write(CLAIMS.update().where(own).values(heard=self._database.now()))
            except StoreError:  # the work itself will meet the same trouble, and say so
                continue


def holder(database: SqlDatabase, job: str) -> str | None:
    """Who works on the job at present; None: nobody."""
    found = database.rows(sa.select(CLAIMS).where(CLAIMS.c.job == job))
    if not found or database.now() - found[0].heard >= STALE or _has_ended(found[0].holder):
        return None
    return str(found[0].holder)


def _myself() -> str:
    return f"process {os.getpid()} on {platform.node()}"


def _has_ended(holder: str) -> bool:
    """Whether it was a process of this machine that is no more."""
    number, _, node = holder.removeprefix("process ").partition(" on ")
    if node != platform.node() or not number.isdigit():
        return False
    return not is_alive(int(number))


def is_alive(process: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and somebody else's
        return True
    return True
