"""The jobs that the page shows: one look at all of them serves all who watch."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apportion.compressors.errors import ApportionError
from apportion.db.runs.store import RunStore
from apportion.search.report.figures import job_figures, job_state, summary_row
from apportion.search.service.folder import ENDED, JobFolder, JobState, job_names
from apportion.search.service.mirror import Mirror

_SHARE = 40
"""A look is followed by a pause of so many times what it took: 2.5 % of a core."""
_TURNS = 10
"""Jobs that have ended are looked at in every so many looks: they may be resumed."""
_FIGURES = 8
_Key = tuple[str, str]


@dataclass
class Look:
    """What was seen last. `rows`: the list's, the newest job first, by their keys; `changed`: the
    number of the look that saw them change; `order`: that of the last look in which jobs came, went
    or changed places."""

    number: int = 0
    rows: dict[_Key, dict[str, Any]] = field(default_factory=dict)
    changed: dict[_Key, int] = field(default_factory=dict)
    order: int = 0
    states: dict[_Key, JobState] = field(default_factory=dict)


class Jobs:
    """The jobs of a run store, and those of the service's storage, each with its own store. Raises
    ApportionError where the store or the storage cannot be read."""

    def __init__(self, store: str | None, storage: str | Path) -> None:
        self._store, self._mirror = store, Mirror(str(storage), kept="page")
        self._storage = self._mirror.folder
        self._open: dict[str, RunStore] = {}
        self._about: dict[_Key, tuple[int, dict[str, Any], list[str]]] = {}
        self._kept: dict[str, tuple[tuple[int, int, int], JobState]] = {}
        self._seen = Look()
        self._boot = secrets.token_hex(4)  # versions of an earlier server are nobody's
        self._lock = threading.Lock()
        self._figures: dict[str, tuple[str, dict[str, Any]]] = {}
        self.pause = 1.0

    def look(self) -> Look:
        """Look at all jobs anew; what is unchanged keeps its number."""
        with self._lock:
            started = time.thread_time()
            before, now = self._seen, Look(self._seen.number + 1)
            self._mirror.follow()
            states = self._states(now.number)
            rows = dict(self._rows(states, now))
            now.rows = {key: rows[key] for key in reversed(rows)}
            for key, row in now.rows.items():
                same = before.rows.get(key) == row and before.states.get(key) == now.states.get(key)
                now.changed[key] = before.changed[key] if same else now.number
            now.order = before.order if list(before.rows) == list(now.rows) else now.number
            self._seen = now
            self.pause = max(1.0, _SHARE * (time.thread_time() - started))
            return now

    def version(self, look: Look) -> str:
        return f"{self._boot}-{look.number}"

    def since(self, look: Look, seen: str | None) -> dict[str, Any] | None:
        """What one must be told who has seen the version `seen`: the rows that changed, and the
        order of all where it did; all of it for None, or a version that is not known; None where
        there is nothing to tell."""
        boot, _, number = (seen or "").rpartition("-")
        known = boot == self._boot and number.isdigit() and int(number) <= look.number
        last = int(number) if known else -1
        rows = [row for key, row in look.rows.items() if look.changed[key] > last]
        if not rows and look.order <= last:
            return None
        order = [_name(key) for key in look.rows] if look.order > last else None
        return {"rows": rows, "order": order, "version": self.version(look)}

    def job_version(self, look: Look, job: str) -> str:
        """What differs when the job's figures do. Raises KeyError for a job that is not there."""
        return f"{self._boot}-{look.changed[self._find(look, job)]}"

    def figures(self, job: str) -> dict[str, Any]:
        """All that the page shows of one job; read once for a version. Raises KeyError."""
        look = self.look()  # before the figures are read: too old is looked at again
        key, version = self._find(look, job), self.job_version(look, job)
        if self._figures.get(job, ("", {}))[0] == version:
            return self._figures[job][1]
        state = look.states.get(key)
        found = job_figures(self._opened(key[0]), job) | {"version": version}
        found["summary"] |= {} if state is None else {"name": state.job, "state": state.state}
        found["files"] = [str(path) for path in self._files(state)]
        self._figures[job] = (version, found)
        while len(self._figures) > _FIGURES:
            self._figures.pop(next(iter(self._figures)))
        return found

    def file(self, job: str, name: str) -> Path:
        """One of the job's result files. Raises KeyError."""
        look = self.look()
        state = look.states.get(self._find(look, job))
        if state is None or Path(name) not in self._files(state):  # only what is listed
            raise KeyError(name)
        return JobFolder(self._storage, state.job).results / name

    def _files(self, state: JobState | None) -> list[Path]:
        if state is None:
            return []
        results = JobFolder(self._storage, state.job).results
        return sorted(
            path.relative_to(results)
            for path in results.rglob("*")
            if path.is_file() and not path.is_symlink()
        )

    def _find(self, look: Look, job: str) -> _Key:
        for key in look.rows:
            if key[0] and key[1] == job:
                return key
        raise KeyError(job)

    def _states(self, number: int) -> list[JobState]:
        """Of all jobs of the storage, the oldest first; unchanged files are not read."""
        kept: dict[str, tuple[tuple[int, int, int], JobState]] = {}
        turn = number % _TURNS
        for job in job_names(self._storage):
            known = self._kept.get(job)
            if known and known[1].state in ENDED and hash(job) % _TURNS != turn:
                kept[job] = known
                continue
            folder = JobFolder(self._storage, job)
            sign = _sign(folder.path / "state.json")
            if known and known[0] == sign:
                kept[job] = known
            elif (state := folder.read_state()) is not None:
                kept[job] = (sign, state)
        self._kept = kept
        states = sorted((state for _, state in kept.values()), key=lambda state: state.submitted)
        return [
            s if s.state in ENDED else JobFolder(self._storage, s.job).judged(s) for s in states
        ]

    def _rows(self, states: list[JobState], look: Look) -> Iterable[tuple[_Key, dict[str, Any]]]:
        """The oldest first: those of the store, those of the storage, those that do not search."""
        found = {(state.store, state.search): state for state in states if state.search}
        stores = dict.fromkeys([self._store, *(store for store, _ in found)])
        waiting = [_not_searching(state, state.error) for state in states if state.search is None]
        own: list[tuple[_Key, dict[str, Any]]] = []
        for url in stores:
            wanted = [job for store, job in found if store == url]
            if url is None:
                continue
            try:
                rows = self._store_rows(url, None if url == self._store else wanted)
            except ApportionError as error:
                if url == self._store:
                    raise
                waiting += [_not_searching(found[url, job], str(error)) for job in wanted]
                continue
            for job, row in rows.items():
                state = found.get((url, job))
                if state is not None:
                    look.states[url, job] = state
                    row = row | {"name": state.job, "state": state.state}
                    own.append(((url, job), row))
                else:
                    yield (url, job), row
        yield from own
        yield from ((("", row["job"]), row) for row in waiting)

    def _store_rows(self, url: str, wanted: list[str] | None) -> dict[str, dict[str, Any]]:
        """One query where nothing new is there."""
        store = self._opened(url)
        told = store.overview()
        jobs = [job for job in told if wanted is None or job in set(wanted)]
        new = [job for job in jobs if self._about.get((url, job), (None,))[0] != told[job][0]]
        for job, (spec, names) in store.about(new).items() if new else ():
            self._about[url, job] = (told[job][0], spec, names)
        rows = {}
        for job in jobs:
            _, spec, names = self._about[url, job]
            _, trials, asked, allowed, best, first, last, claim = told[job]
            state = job_state({first, last}, claim is not None and store.holder(job) is not None)
            row = summary_row(job, spec, names, state, (asked, allowed, best))
            rows[job] = row | {"trials": trials, "runs": f"{first}, {last}"}
        return rows

    def _opened(self, url: str) -> RunStore:
        if url not in self._open:
            self._open[url] = RunStore(url, reading=True)
        return self._open[url]


def _name(key: _Key) -> str:
    return key[1]


def _sign(path: Path) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _not_searching(state: JobState, trouble: str | None) -> dict[str, Any]:
    """The row of a job that has not begun to search, and may never, or whose store is away."""
    said = state.state if state.step is None else "{}: {} {}/{}".format(state.state, *state.step)
    row = {"job": state.job, "state": f"{said}: {trouble}" if trouble else said, "waiting": True}
    none = {"fitness": None, "best": None, "asked": 0, "evaluations": 0}
    return row | none | {"budgets": {}, "algorithms": []}
