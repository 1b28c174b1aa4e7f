"""The run store: jobs, runs and an append-only log of trials, in SQLite by default and in
PostgreSQL by URL.

A run's trials are its only checkpoint (resume by replay). A trial row is never changed; a run's
`state` and `spent` are."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from apportion.compressors.errors import StoreError, UnknownNameError, hidden
from apportion.db.runs.lease import Lease, holder
from apportion.db.runs.overview import about, overview
from apportion.db.runs.schema import JOBS, RUNS, SELECTION, TRIALS, prepare
from apportion.db.runs.sql import Refused, SqlDatabase
from apportion.db.runs.url import resolve

_LOOKUP_CHUNK = 400  # bound variables in one statement: SQLite's oldest limit is 999


@dataclass(frozen=True, slots=True)
class Run:
    """One algorithm x seed of a job. `state` is running, finished, failed or cancelled; `spent` the
    seconds that its sessions took. Of its trials: the number `told`, how many were `scored` for it,
    the evaluations `asked`, and the `best` fitness at full fidelity (None before the first). Of the
    algorithm: the seconds that it `thought` between scores (None before its end), and what it
    `notes` of itself."""

    id: str
    job: str
    algorithm: str
    parameters: dict[str, Any]
    seed: int
    evaluations: float
    state: str = "running"
    created: float = 0.0
    spent: float = 0.0
    told: int = 0
    scored: int = 0
    asked: float = 0.0
    best: float | None = None
    thought: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """As lists of runs show it."""
        return {
            "run": self.id,
            "job": self.job,
            "algorithm": self.algorithm,
            "seed": self.seed,
            "state": self.state,
            "asked": self.asked,
            "evaluations": self.evaluations,
            "trials": self.told,
            "scored": self.scored,
            "best": self.best,
            "seconds": self.spent,
        }


@dataclass(frozen=True, slots=True)
class StoredTrial:
    """A scored candidate. `fitness`: lower is better; `evaluated` is False where the score came
    from another trial; `seconds` is what scoring took."""

    candidate: tuple[int, ...]
    fidelity: float
    fitness: float
    evaluated: bool
    seconds: float


class RunStore:
    """All methods raise StoreError when the database refuses or cannot be reached. Safe for several
    processes at once; a server that restarts is waited for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._database = SqlDatabase(resolve(url), prepare)

    def close(self) -> None:
        self._database.close()

    def claim(self, job: str) -> Lease:
        """A context inside which no other process can claim the job. Entering raises StoreError,
        with who holds it."""
        return Lease(self._database, job)

    def holder(self, job: str) -> str | None:
        """Who works on the job at present; None: nobody."""
        return holder(self._database, job)

    def add_job(self, job: str, spec: dict[str, Any], space: dict[str, Any] | None = None) -> None:
        """Remember a job by its id, with what its candidates stand for. Those of one that is there
        already are brought up to date: files may have moved."""
        row = {"spec": json.dumps(spec), "space": json.dumps(space) if space else None}
        try:
            self._database.write(JOBS.insert().values(id=job, created=time.time(), **row))
        except Refused:
            self._database.write(JOBS.update().where(JOBS.c.id == job).values(**row))

    def job(self, job: str) -> dict[str, Any]:
        rows = self._database.rows(sa.select(JOBS.c.spec).where(JOBS.c.id == job))
        if not rows:
            raise StoreError(self.url, f"no job {job!r}")
        spec: dict[str, Any] = json.loads(rows[0].spec)
        return spec

    def space(self, job: str) -> dict[str, Any] | None:
        """What the job's candidates stand for (Problem.describe); None of a job that was stored
        before that was kept."""
        rows = self._database.rows(sa.select(JOBS.c.space).where(JOBS.c.id == job))
        return json.loads(rows[0].space) if rows and rows[0].space else None

    def overview(self) -> dict[str, tuple[Any, ...]]:
        """What all jobs have come to (`overview.overview`)."""
        return overview(self._database)

    def about(self, jobs: Sequence[str]) -> dict[str, tuple[dict[str, Any], list[str]]]:
        """What `jobs` are (`overview.about`)."""
        return about(self._database, jobs)

    def jobs(self) -> list[str]:
        """The ids of all jobs, oldest first."""
        return [
            row.id
            for row in self._database.rows(sa.select(JOBS.c.id).order_by(JOBS.c.created, JOBS.c.id))
        ]

    def add_run(self, run: Run) -> Run:
        """Add `run`, or return the one with its id that is there already."""
        row = {
            "id": run.id,
            "job": run.job,
            "algorithm": run.algorithm,
            "parameters": json.dumps(run.parameters, sort_keys=True),
            "seed": run.seed,
            "evaluations": run.evaluations,
            "state": run.state,
            "created": time.time(),
            "spent": 0.0,
        }
        with suppress(Refused):  # it may be there already
            self._database.write(RUNS.insert().values(**row))
        return self.run(run.id)

    def set_state(self, run: str, state: str, spent: float) -> None:
        """Set a run's state and add `spent` seconds to what its earlier sessions took."""
        values = {"state": state, "spent": RUNS.c.spent + spent}
        self._database.write(RUNS.update().where(RUNS.c.id == run).values(**values))

    def end(self, run: str, thought: float, notes: dict[str, Any]) -> None:
        """Keep what the algorithm of a finished run says of itself."""
        values = {"thought": thought, "notes": json.dumps(notes)}
        self._database.write(RUNS.update().where(RUNS.c.id == run).values(**values))

    def runs(self, job: str | None = None) -> list[Run]:
        """All runs, or a job's, oldest first."""
        query = sa.select(RUNS).order_by(RUNS.c.created, RUNS.c.id)
        return [
            _run(row)
            for row in self._database.rows(query if job is None else query.where(RUNS.c.job == job))
        ]

    def run(self, run: str) -> Run:
        """Raises UnknownNameError when there is no such run."""
        rows = self._database.rows(sa.select(RUNS).where(RUNS.c.id == run))
        if not rows:
            raise UnknownNameError(
                "run", run, [known.id for known in self.runs()], hidden(self.url)
            )
        return _run(rows[0])

    def trials(self, run: str) -> list[StoredTrial]:
        """A run's trials in the order they were told."""
        rows = self._database.rows(
            sa.select(TRIALS).where(TRIALS.c.run == run).order_by(TRIALS.c.number)
        )
        if [row.number for row in rows] != list(range(len(rows))):
            raise StoreError(self.url, f"run {run!r} has gaps in its trials; the store was altered")
        return [_trial(row) for row in rows]

    def append(self, run: str, problem: str, number: int, trial: StoredTrial) -> None:
        """Append trial `number` (0, 1, ...) of `run`; committed when this returns. Raises
        StoreError when the number is taken: another process works on the same run."""
        row = {
            "run": run,
            "number": number,
            "problem": problem,
            "candidate": _key(trial.candidate),
            "fidelity": trial.fidelity,
            "fitness": trial.fitness,
            "evaluated": trial.evaluated,
            "seconds": trial.seconds,
        }
        counts: dict[str, Any] = {
            "told": RUNS.c.told + 1,
            "scored": RUNS.c.scored + int(trial.evaluated),
            "asked": RUNS.c.asked + trial.fidelity,
        }
        if trial.fidelity == 1.0:
            lower = sa.or_(RUNS.c.best.is_(None), RUNS.c.best > trial.fitness)
            counts["best"] = sa.case((lower, trial.fitness), else_=RUNS.c.best)
        try:
            self._database.write(
                TRIALS.insert().values(**row),
                RUNS.update().where(RUNS.c.id == run).values(**counts),
            )
        except Refused as error:
            there = self._database.rows(
                sa.select(TRIALS).where(TRIALS.c.run == run, TRIALS.c.number == number)
            )
            if not error.again or [dict(one._mapping) for one in there] != [row]:
                raise StoreError(self.url, f"another process is working on run {run!r}") from error

    def known_scores(
        self, problem: str, asked: Iterable[tuple[tuple[int, ...], float]]
    ) -> dict[tuple[tuple[int, ...], float], float]:
        """Fitness of those (candidate, fidelity) that any run has scored on the same problem."""
        wanted = {
            (_key(candidate), fidelity): (candidate, fidelity) for candidate, fidelity in asked
        }
        keys = sorted({key for key, _ in wanted})
        found: dict[tuple[tuple[int, ...], float], float] = {}
        for start in range(0, len(keys), _LOOKUP_CHUNK):
            chunk = keys[start : start + _LOOKUP_CHUNK]
            query = sa.select(TRIALS.c.candidate, TRIALS.c.fidelity, TRIALS.c.fitness)
            for row in self._database.rows(
                query.where(TRIALS.c.problem == problem, TRIALS.c.candidate.in_(chunk))
            ):
                if (row.candidate, row.fidelity) in wanted:
                    found[wanted[row.candidate, row.fidelity]] = row.fitness
        return found

    def selection(self, run: str) -> dict[tuple[int, ...], float]:
        """Candidate -> score on the selection images (lower is better), of those that the final
        pick of `run` is made among."""
        rows = self._database.rows(sa.select(SELECTION).where(SELECTION.c.run == run))
        return {_candidate(row.candidate): row.score for row in rows}

    def add_selection(self, run: str, candidate: tuple[int, ...], score: float) -> None:
        """Keep a selection score; the one that is there already stays."""
        row = {"run": run, "candidate": _key(candidate), "score": score}
        with suppress(Refused):  # it may be there already
            self._database.write(SELECTION.insert().values(**row))


def _key(candidate: tuple[int, ...]) -> str:
    return ",".join(map(str, candidate))


def _candidate(key: str) -> tuple[int, ...]:
    return tuple(int(index) for index in key.split(","))


def _trial(row: sa.Row[Any]) -> StoredTrial:
    return StoredTrial(
        _candidate(row.candidate), row.fidelity, row.fitness, bool(row.evaluated), row.seconds
    )


def _run(row: sa.Row[Any]) -> Run:
    content = dict(row._mapping)
    texts = {
        "parameters": json.loads(content["parameters"]),
        "notes": json.loads(content["notes"] or "{}"),
    }
    return Run(**content | texts)
