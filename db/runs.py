"""The run store: jobs, runs and an append-only log of trials, in SQLite by default and in PostgreSQL by URL.

A run's trials are its only checkpoint (resume by replay). A trial row is never changed; a run's `state` and `spent` are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError as SqlError
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from compressors.errors import StoreError, UnknownNameError

VERSION = 1
_metadata = sa.MetaData()
_schema = sa.Table("apportion_schema", _metadata, sa.Column("version", sa.Integer, primary_key=True))
_jobs = sa.Table(
    "jobs",
    _metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
)
_runs = sa.Table(
    "runs",
    _metadata,
    sa.Column("id", sa.String(80), primary_key=True),
    sa.Column("job", sa.String(16), sa.ForeignKey("jobs.id"), nullable=False, index=True),
    sa.Column("algorithm", sa.String(200), nullable=False),
    sa.Column("parameters", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("evaluations", sa.Float, nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("spent", sa.Float, nullable=False),
)
_trials = sa.Table(
    "trials",
    _metadata,
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
_selection = sa.Table(
    "selection",
    _metadata,
    sa.Column("run", sa.String(80), sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("candidate", sa.String(4000), primary_key=True),
    sa.Column("score", sa.Double, nullable=False),
)
_LOOKUP_CHUNK = 400  # bound variables in one statement: SQLite's oldest limit is 999


@dataclass(frozen=True, slots=True)
class Run:
    """One algorithm x seed of a job. `state` is running, finished or failed; `spent` the seconds that its sessions took."""

    id: str
    job: str
    algorithm: str
    parameters: dict[str, Any]
    seed: int
    evaluations: float
    state: str = "running"
    created: float = 0.0
    spent: float = 0.0


@dataclass(frozen=True, slots=True)
class StoredTrial:
    """A scored candidate. `fitness`: lower is better; `evaluated` is False where the score came from another trial;
    `seconds` is what scoring took."""

    candidate: tuple[int, ...]
    fidelity: float
    fitness: float
    evaluated: bool
    seconds: float


class RunStore:
    """All methods raise StoreError when the database cannot be reached or refuses. Safe for several processes at once."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._engine = sa.create_engine(url)
            if self._engine.dialect.name == "sqlite":
                sa.event.listen(self._engine, "connect", _tune_sqlite)
            with self._engine.begin() as connection:
                _metadata.create_all(connection)
                version = connection.execute(sa.select(_schema.c.version)).scalar()
                if version is None:
                    connection.execute(_schema.insert().values(version=VERSION))
        except (SQLAlchemyError, ImportError) as error:
            raise StoreError(url, _reason(error)) from error
        if version not in (None, VERSION):
            raise StoreError(url, f"its schema has version {version}; this apportion reads version {VERSION}")

    def close(self) -> None:
        self._engine.dispose()

    def add_job(self, job: str, spec: dict[str, Any]) -> None:
        """Remember a job by its id. The spec of one that is there already is brought up to date: files may have moved."""
        text = json.dumps(spec)
        if self._rows(sa.select(_jobs.c.id).where(_jobs.c.id == job)):
            self._write(_jobs.update().where(_jobs.c.id == job).values(spec=text))
            return
        self._write(_jobs.insert().values(id=job, created=time.time(), spec=text), ignore_present=True)

    def job(self, job: str) -> dict[str, Any]:
        rows = self._rows(sa.select(_jobs.c.spec).where(_jobs.c.id == job))
        if not rows:
            raise StoreError(self.url, f"no job {job!r}")
        spec: dict[str, Any] = json.loads(rows[0].spec)
        return spec

    def add_run(self, run: Run) -> Run:
        """Add `run`, or return the one with its id that is there already."""
        present = self._rows(sa.select(_runs).where(_runs.c.id == run.id))
        if not present:
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
            self._write(_runs.insert().values(**row), ignore_present=True)
            present = self._rows(sa.select(_runs).where(_runs.c.id == run.id))
        return _run(present[0])

    def set_state(self, run: str, state: str, spent: float) -> None:
        """Set a run's state and add `spent` seconds to what its earlier sessions took."""
        values = {"state": state, "spent": _runs.c.spent + spent}
        self._write(_runs.update().where(_runs.c.id == run).values(**values))

    def runs(self, job: str | None = None) -> list[Run]:
        """All runs, or a job's, oldest first."""
        query = sa.select(_runs).order_by(_runs.c.created, _runs.c.id)
        return [_run(row) for row in self._rows(query if job is None else query.where(_runs.c.job == job))]

    def run(self, run: str) -> Run:
        """Raises UnknownNameError when there is no such run."""
        rows = self._rows(sa.select(_runs).where(_runs.c.id == run))
        if not rows:
            raise UnknownNameError("run", run, [known.id for known in self.runs()], str(self.url))
        return _run(rows[0])

    def trials(self, run: str) -> list[StoredTrial]:
        """A run's trials in the order they were told."""
        rows = self._rows(sa.select(_trials).where(_trials.c.run == run).order_by(_trials.c.number))
        if [row.number for row in rows] != list(range(len(rows))):
            raise StoreError(self.url, f"run {run!r} has gaps in its trials; the store was altered")
        return [_trial(row) for row in rows]

    def append(self, run: str, problem: str, number: int, trial: StoredTrial) -> None:
        """Append trial `number` (0, 1, ...) of `run`; committed when this returns. Raises StoreError when the number is
        taken: another process works on the same run."""
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
        try:
            self._write(_trials.insert().values(**row))
        except StoreError as error:
            if isinstance(error.__cause__, IntegrityError):
                raise StoreError(self.url, f"another process is working on run {run!r}") from error
            raise

    def known_scores(
        self, problem: str, asked: Iterable[tuple[tuple[int, ...], float]]
    ) -> dict[tuple[tuple[int, ...], float], float]:
        """Fitness of those (candidate, fidelity) that any run has scored on the same problem."""
        wanted = {(_key(candidate), fidelity): (candidate, fidelity) for candidate, fidelity in asked}
        keys = sorted({key for key, _ in wanted})
        found: dict[tuple[tuple[int, ...], float], float] = {}
        for start in range(0, len(keys), _LOOKUP_CHUNK):
            chunk = keys[start : start + _LOOKUP_CHUNK]
            query = sa.select(_trials.c.candidate, _trials.c.fidelity, _trials.c.fitness)
            for row in self._rows(query.where(_trials.c.problem == problem, _trials.c.candidate.in_(chunk))):
                if (row.candidate, row.fidelity) in wanted:
                    found[wanted[row.candidate, row.fidelity]] = row.fitness
        return found

    def selection(self, run: str) -> dict[tuple[int, ...], float]:
        """Candidate -> score on the selection images (lower is better), of those that the final pick of `run` is made among."""
        rows = self._rows(sa.select(_selection).where(_selection.c.run == run))
        return {_candidate(row.candidate): row.score for row in rows}

    def add_selection(self, run: str, candidate: tuple[int, ...], score: float) -> None:
        """Keep a selection score; the one that is there already stays."""
        row = {"run": run, "candidate": _key(candidate), "score": score}
        self._write(_selection.insert().values(**row), ignore_present=True)

    def summary(self, run: str) -> tuple[int, int, float | None]:
        """Number of trials told, number evaluated, best fitness at full fidelity (None before the first)."""
        best = sa.select(sa.func.min(_trials.c.fitness)).where(_trials.c.run == run, _trials.c.fidelity == 1.0)
        scored = sa.func.sum(sa.cast(_trials.c.evaluated, sa.Integer)).label("scored")
        counts = sa.select(sa.func.count().label("told"), scored)
        row = self._rows(counts.where(_trials.c.run == run))[0]
        return row.told, row.scored or 0, self._rows(best)[0][0]

    def _rows(self, query: Any) -> Sequence[sa.Row[Any]]:
        try:
            with self._engine.connect() as connection:
                return list(connection.execute(query))
        except SQLAlchemyError as error:
            raise StoreError(self.url, _reason(error)) from error

    def _write(self, statement: sa.Executable, ignore_present: bool = False) -> None:
        try:
            with self._engine.begin() as connection:
                connection.execute(statement)
        except IntegrityError as error:
            if not ignore_present:
                raise StoreError(self.url, _reason(error)) from error
        except SQLAlchemyError as error:
            raise StoreError(self.url, _reason(error)) from error


def _tune_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")  # readers do not block the writer
    cursor.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing; a power cut at most the last commits
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.close()


def _key(candidate: tuple[int, ...]) -> str:
    return ",".join(map(str, candidate))


def _candidate(key: str) -> tuple[int, ...]:
    return tuple(int(index) for index in key.split(","))


def _trial(row: sa.Row[Any]) -> StoredTrial:
    return StoredTrial(_candidate(row.candidate), row.fidelity, row.fitness, bool(row.evaluated), row.seconds)


def _run(row: sa.Row[Any]) -> Run:
    content = dict(row._mapping)
    return Run(**{**content, "parameters": json.loads(content["parameters"])})


def _reason(error: Exception) -> str:
    """The database's own words, without SQLAlchemy's statement dump."""
    original = error.orig if isinstance(error, SqlError) and error.orig is not None else error
    return str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__
