"""The run store: jobs, runs and an append-only log of trials, in SQLite by default and in
PostgreSQL by URL.

A run's trials are its only checkpoint (resume by replay). A trial row is never changed; a run's
`state` and `spent` are."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa

from apportion.compressors.errors import StoreError, UnknownNameError
from apportion.compressors.progress import Progress, silent
from apportion.compressors.secrets import masked
from apportion.db.runs.lease import Lease, Surroundings, Watch
from apportion.db.runs.overview import about, overview
from apportion.db.runs.prepare import check, prepare
from apportion.db.runs.records import Run, StoredTrial
from apportion.db.runs.rows import (
    check_numbers,
    level_counts,
    to_candidate,
    to_digest,
    to_mapping,
    to_text,
)
from apportion.db.runs.schema import JOBS, RUNS, SELECTION, TRIALS
from apportion.db.runs.sql import Guard, Refused, SqlDatabase
from apportion.db.runs.url import resolve

_WITH_BEATS = 3  # the version of the tables from which leases beat
_LONGEST_ID = 1000  # characters: PostgreSQL's indices hold 2.7 kB
_LOOKUP_CHUNK = 400  # bound variables in one statement: SQLite's oldest limit is 999

_TRIAL = [column for column in TRIALS.c if column.name != "digest"]  # which version 2 lacks


class RunStore:
    """All methods raise StoreError when the database refuses or cannot be reached. Safe for several
    processes at once; a server that restarts is waited for. One that is opened for `reading` is
    neither made nor brought up to date, and takes nothing."""

    def __init__(self, url: str, reading: bool = False) -> None:
        self.url, self.reading = url, reading
        self._database = SqlDatabase(resolve(url), check if reading else prepare, reading)
        self._watch = Watch(self._database)
        self._leases: dict[str, Lease] = {}
        self._job_of: dict[str, str] = {}

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def claim(
        self, job: str, progress: Progress = silent, where: Surroundings | None = None
    ) -> Iterator[Lease]:
        """A context inside which no other process can claim the job. Entering raises StoreError,
        with who holds it; `progress` is told while that is being found out. Inside, what is written
        of the job's runs raises StoreError once another process has taken over."""
        with Lease(self._database, job, progress, where) as lease:
            self._leases[job] = lease
            try:
                yield lease
            finally:
                del self._leases[job]

    def holder(self, job: str) -> str | None:
        """Who works on the job at present; None: nobody. One who died on another machine is found
        out by looking again, for some time."""
        return self._watch.holder(job) if self._database.version >= _WITH_BEATS else None

    def _guard(self, run: str) -> Guard | None:
        lease = self._leases.get(self._job_of.get(run, ""))
        return None if lease is None else (lease.guard(), lease.lost())

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
        return to_mapping(rows[0].spec, self.url, f"job {job!r}, spec")

    def space(self, job: str) -> dict[str, Any] | None:
        """What the job's candidates stand for (Problem.describe); None of a job that was stored
        before that was kept."""
        rows = self._database.rows(sa.select(JOBS.c.space).where(JOBS.c.id == job))
        if not rows or not rows[0].space:
            return None
        return to_mapping(rows[0].space, self.url, f"job {job!r}, space")

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
        check_numbers(self.url, f"run {run.id!r}", evaluations=run.evaluations)
        if not 0 <= run.seed < 2**63:
            raise StoreError(self.url, f"run {run.id!r}: seed {run.seed}, valid are 0 to 2^63 - 1")
        if len(run.id) > _LONGEST_ID:
            raise StoreError(
                self.url, f"a run's id has {len(run.id)} characters, {_LONGEST_ID} at most"
            )
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
        check_numbers(self.url, f"run {run!r}", spent=spent)
        values = {"state": state, "spent": RUNS.c.spent + spent}
        change = RUNS.update().where(RUNS.c.id == run).values(**values)
        self._database.write(change, guard=self._guard(run))

    def end(self, run: str, thought: float, notes: dict[str, Any]) -> None:
        """Keep what the algorithm of a finished run says of itself."""
        check_numbers(self.url, f"run {run!r}", thought=thought)
        values = {"thought": thought, "notes": json.dumps(notes)}
        change = RUNS.update().where(RUNS.c.id == run).values(**values)
        self._database.write(change, guard=self._guard(run))

    def runs(self, job: str | None = None) -> list[Run]:
        """All runs, or a job's, oldest first."""
        query = sa.select(RUNS).order_by(RUNS.c.created, RUNS.c.id)
        return [
            self._run(row)
            for row in self._database.rows(query if job is None else query.where(RUNS.c.job == job))
        ]

    def run(self, run: str) -> Run:
        """Raises UnknownNameError when there is no such run."""
        rows = self._database.rows(sa.select(RUNS).where(RUNS.c.id == run))
        if not rows:
            raise UnknownNameError(
                "run", run, [known.id for known in self.runs()], masked(self.url)
            )
        return self._run(rows[0])

    def trials(self, run: str) -> list[StoredTrial]:
        """A run's trials in the order they were told."""
        rows = self._database.rows(
            sa.select(*_TRIAL).where(TRIALS.c.run == run).order_by(TRIALS.c.number)
        )
        if [row.number for row in rows] != list(range(len(rows))):
            raise StoreError(self.url, f"run {run!r} has gaps in its trials; the store was altered")
        counts = self._counts(run)
        return [
            StoredTrial(
                to_candidate(row.candidate, counts, self.url, f"run {run!r}, trial {row.number}"),
                row.fidelity,
                row.fitness,
                bool(row.evaluated),
                row.seconds,
            )
            for row in rows
        ]

    def append(self, run: str, problem: str, number: int, trial: StoredTrial) -> None:
        """Append trial `number` (0, 1, ...) of `run`; committed when this returns. Raises
        StoreError when the number is taken: another process works on the same run; and for a score
        that is NaN."""
        check_numbers(
            self.url,
            f"run {run!r}, trial {number}",
            fitness=trial.fitness,
            fidelity=trial.fidelity,
            seconds=trial.seconds,
        )
        text = to_text(trial.candidate)
        row = {
            "run": run,
            "number": number,
            "problem": problem,
            "candidate": text,
            "digest": to_digest(text),
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
                guard=self._guard(run),
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
            (to_text(candidate), fidelity): (candidate, fidelity) for candidate, fidelity in asked
        }
        keys = sorted({to_digest(key) for key, _ in wanted})
        found: dict[tuple[tuple[int, ...], float], float] = {}
        for start in range(0, len(keys), _LOOKUP_CHUNK):
            chunk = keys[start : start + _LOOKUP_CHUNK]
            query = sa.select(TRIALS.c.candidate, TRIALS.c.fidelity, TRIALS.c.fitness)
            for row in self._database.rows(
                query.where(TRIALS.c.problem == problem, TRIALS.c.digest.in_(chunk))
            ):
                if (row.candidate, row.fidelity) in wanted:
                    found[wanted[row.candidate, row.fidelity]] = row.fitness
        return found

    def selection(self, run: str) -> dict[tuple[int, ...], float]:
        """Candidate -> score on the selection data (lower is better), of those that the final
        pick of `run` is made among."""
        columns = SELECTION.c.candidate, SELECTION.c.score
        rows = self._database.rows(sa.select(*columns).where(SELECTION.c.run == run))
        counts, where = self._counts(run) if rows else None, f"run {run!r}, selection"
        return {to_candidate(r.candidate, counts, self.url, where): r.score for r in rows}

    def add_selection(self, run: str, candidate: tuple[int, ...], score: float) -> None:
        """Keep a selection score; the one that is there already stays."""
        check_numbers(self.url, f"run {run!r}, selection", score=score)
        text = to_text(candidate)
        row = {"run": run, "digest": to_digest(text), "candidate": text, "score": score}
        with suppress(Refused):  # it may be there already
            self._database.write(SELECTION.insert().values(**row), guard=self._guard(run))

    def _counts(self, run: str) -> list[int] | None:
        """How many levels each layer of the run's job has, where that is known."""
        query = sa.select(JOBS.c.id).join(RUNS, RUNS.c.job == JOBS.c.id)
        rows = self._database.rows(query.where(RUNS.c.id == run))
        return level_counts(self.space(rows[0].id)) if rows else None

    def _run(self, row: sa.Row[Any]) -> Run:
        content, where = dict(row._mapping), f"run {row.id!r}"
        self._job_of[row.id] = row.job
        read = {
            "parameters": to_mapping(content["parameters"], self.url, f"{where}, parameters"),
            "notes": to_mapping(content["notes"] or "{}", self.url, f"{where}, notes"),
        }
        return Run(**content | read)
