"""Leases: who works on a job, so that a second one is told instead of let in.

Nobody's wall clock counts: a holder counts its lease's beat up, and who asks watches that for some
time of its own."""

from __future__ import annotations

import os
import secrets
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import sqlalchemy as sa

from apportion.compressors.errors import StoreError
from apportion.compressors.progress import Progress, silent
from apportion.db.runs.process import Process
from apportion.db.runs.schema import CLAIMS
from apportion.db.runs.sql import Refused, SqlDatabase

BEAT = 5.0
"""Seconds between two signs of life."""
STALE = 60.0
"""Seconds that one who asks watches a lease without a sign of life, before it is taken over. That
of a process that has ended beside the one who asks is taken at once."""
_LOOK = 1.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Who asks, and how time passes there: seconds from any start, and waiting some."""

    process: Process
    now: Any = time.monotonic
    wait: Any = time.sleep


class Lease:
    """Holds `job` inside a `with` block. Entering raises StoreError, which names the holder, where
    another process does; it takes some seconds where that is on another machine, and up to `STALE`
    where it is silent. Whoever loses it, having been silent for so long itself, is told by the next
    write that is `guard`ed, or at the end."""

    def __init__(
        self,
        database: SqlDatabase,
        job: str,
        progress: Progress = silent,
        where: Surroundings | None = None,
    ) -> None:
        self._database, self._job, self._progress = database, job, progress
        self._where = where or Surroundings(Process.this())
        self._token = secrets.token_hex(16)
        self._over = threading.Event()
        self._beats = threading.Thread(target=self._keep, name=f"lease {job}", daemon=True)

    def __enter__(self) -> Lease:
        watched: tuple[str, int] | None = None
        since = self._where.now()
        while not self._insert():
            held = self._held()
            if held is None:  # released since
                continue
            if held.token == self._token:  # the server took the row, and its answer was lost
                break
            there = Process.from_text(held.process)
            lives = None if there is None else self._where.process.knows(there)
            seen = held.token, held.beat
            if lives or (watched is not None and seen != watched):
                raise StoreError(
                    self._database.url,
                    f"job {self._job} is being worked on by {held.holder}; cancel that first, or "
                    "wait until it ends",
                )
            watched, quiet = seen, self._where.now() - since
            if lives is False or quiet >= STALE:
                if self._take_over(seen):
                    break
                continue
            self._progress(f"wait for a sign of {held.holder}", int(quiet), int(STALE))
            self._where.wait(_LOOK)
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
            released = self._database.write(CLAIMS.delete().where(self._own()))
        except StoreError:
            if error is None:
                raise  # else what went wrong first is what counts; the lease goes stale
            return
        if error is None and released != [1]:
            raise self.lost()

    def beat(self) -> bool:
        """Give a sign of life. False: the lease is another's."""
        return self._database.write(self.guard()) == [1]

    def guard(self) -> sa.Update:
        """A sign of life that changes no row where the lease is another's."""
        return CLAIMS.update().where(self._own()).values(beat=CLAIMS.c.beat + 1)

    def lost(self) -> StoreError:
        """What the one who lost it says."""
        return StoreError(
            self._database.url,
            f"job {self._job} was taken over by another process, because this one gave no sign of "
            f"life for {STALE:.0f} s; this one stops, what it stored is kept",
        )

    def _own(self) -> sa.ColumnElement[bool]:
        return sa.and_(CLAIMS.c.job == self._job, CLAIMS.c.token == self._token)

    def _row(self) -> dict[str, object]:
        process = self._where.process
        who = {"holder": str(process), "process": process.to_text()}
        return {"job": self._job, "token": self._token, "beat": 0, **who}

    def _insert(self) -> bool:
        try:
            self._database.write(CLAIMS.insert().values(**self._row()))
        except Refused:
            return False
        return True

    def _held(self) -> sa.Row[Any] | None:
        return _row_of(self._database, self._job)

    def _take_over(self, seen: tuple[str, int]) -> bool:
        token, beat = seen
        same = sa.and_(CLAIMS.c.job == self._job, CLAIMS.c.token == token, CLAIMS.c.beat == beat)
        return self._database.write(CLAIMS.update().where(same).values(**self._row())) == [1]

    def _keep(self) -> None:
        while not self._over.wait(BEAT):
            try:
                if not self.beat():
                    return
            except StoreError:  # the work itself will meet the same trouble, and say so
                continue


class Watch:
    """Who works on jobs, as one sees it who looks now and then: a lease counts until it has been
    the same for `STALE` seconds of looking."""

    def __init__(self, database: SqlDatabase, where: Surroundings | None = None) -> None:
        self._database, self._where = database, where or Surroundings(Process.this())
        self._seen: dict[str, tuple[tuple[str, int], float]] = {}

    def holder(self, job: str) -> str | None:
        """Who works on the job at present; None: nobody."""
        held = _row_of(self._database, job)
        if held is None:
            return None
        there = Process.from_text(held.process)
        lives = None if there is None else self._where.process.knows(there)
        now, seen = self._where.now(), (held.token, held.beat)
        before, since = self._seen.get(job, (seen, now))
        since = since if before == seen else now
        self._seen[job] = seen, since
        if lives is False or (lives is None and now - since >= STALE):
            return None
        return str(held.holder)


def _row_of(database: SqlDatabase, job: str) -> sa.Row[Any] | None:
    rows = database.rows(sa.select(CLAIMS).where(CLAIMS.c.job == job))
    return rows[0] if rows else None


def is_alive(process: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and somebody else's
        return True
    return True
