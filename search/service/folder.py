"""A job's folder in the service's storage, and what is said of the job there.

STORAGE/jobs/ID/           for its owner alone
STORAGE/jobs/ID/package/   what was submitted: the job, small files, the project's own code
STORAGE/jobs/ID/state.json what the job's process says of itself
STORAGE/jobs/ID/alive      touched by that process as long as it lives
STORAGE/jobs/ID/results/   what it exported
STORAGE/databases/NAME/    layer databases, shared by the jobs that name them so
STORAGE/runs.sqlite        the run store of the jobs that name none
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError

from apportion.compressors.errors import OutputError, UnknownNameError
from apportion.db.files import finite, write_json
from apportion.db.runs.url import masked

MARK = "@apportion "
"""Begins the lines of a job's log that hold its state as JSON."""
ENDED = ("finished", "failed", "cancelled")
BEAT, SILENT = 10.0, 60.0
"""Seconds between two signs of life of a job's process; without one for so long it is gone."""
_LONGEST = 1000
"""Characters of an error that are kept."""
_ALIVE = "alive"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")


def _having(**kinds: type | tuple[type, ...]) -> AfterValidator:
    """A mapping that is empty, or has at least these keys."""

    def check(content: dict[str, Any]) -> dict[str, Any]:
        for key, kind in kinds.items():
            if content and not isinstance(content.get(key), kind):
                raise ValueError(f"{key} is missing, or of another kind")
        return content

    return AfterValidator(check)


_NUMBER = (int, float)
_Run = Annotated[dict[str, Any], _having(run=str, state=str, asked=_NUMBER, evaluations=_NUMBER)]
_Best = Annotated[dict[str, Any], _having(run=str, fitness=_NUMBER)]
_Workers = Annotated[dict[str, Any], _having(there=int, replaced=dict)]


@dataclass
class JobState:
    """`state`: queued, building, searching, exporting, finished, failed or cancelled. `step`: what
    is being done, how much of it is done, and of how much. `runs`: one row per algorithm x seed;
    `rate`: evaluations per second; `left`: seconds, estimated. Times are seconds since the
    epoch."""

    job: str
    file: str
    state: str = "queued"
    attempt: int = 1
    submitted: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    updated: float = field(default_factory=time.time)
    step: tuple[str, int | float, int | float] | None = None
    runs: list[_Run] = field(default_factory=list)
    best: _Best | None = None
    rate: float | None = None
    left: float | None = None
    workers: _Workers = field(default_factory=dict)
    error: str | None = None
    search: str | None = None
    store: str | None = None
    priority: float = 1.0
    formats: list[str] = field(default_factory=lambda: ["safetensors"])

    def to_json(self) -> dict[str, Any]:
        """As anybody may read it: without a password in the store's URL."""
        content = {"store": self.store and masked(self.store), "error": cut(self.error)}
        return dict(finite(asdict(self))) | content

    @classmethod
    def from_json(cls, content: object) -> JobState:
        """Of this or a later version: keys that are not known are left out. Raises ValueError."""
        return _CHECKED.validate_python(content)


_CHECKED = TypeAdapter(JobState)


class JobFolder:
    """`id` is one path component of letters, digits, - and _. Raises UnknownNameError for one that
    is not."""

    def __init__(self, storage: Path, job: str) -> None:
        if not _ID.fullmatch(job):
            raise UnknownNameError("job", job, [])
        self.job = job
        self.path = storage / "jobs" / job

    @property
    def package(self) -> Path:
        return self.path / "package"

    @property
    def results(self) -> Path:
        return self.path / "results"

    def read_state(self) -> JobState | None:
        """None before the job's process began; a file that cannot be read is that job's failure,
        and no other's."""
        try:
            text = (self.path / "state.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return self._unreadable(error)
        try:
            state = JobState.from_json(json.loads(text))
        except (ValueError, RecursionError) as error:
            return self._unreadable(error)
        state.job = self.job
        return state

    def _unreadable(self, error: Exception) -> JobState:
        reason = str(error).strip().splitlines()[0]
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        said = f"{self.path / 'state.json'} cannot be read: {reason}; resume writes it anew"
        return JobState(self.job, "", state="failed", submitted=0.0, ended=0.0, error=said)

    def beat(self) -> None:
        """A sign of life of the job's process, which is not there on a disk that is full."""
        with suppress(OSError, OutputError):
            self.make()
            (self.path / _ALIVE).touch()

    def silence(self) -> float:
        """Seconds since the last sign of life; 0 where there has been none."""
        try:
            return max(0.0, time.time() - (self.path / _ALIVE).stat().st_mtime)
        except OSError:
            return 0.0

    def gave_signs(self) -> bool:
        return (self.path / _ALIVE).exists()

    def judged(self, state: JobState) -> JobState:
        """`state` as it must be: of a process that gives no sign of life any more, failed."""
        if state.state in ENDED or self.silence() < SILENT:
            return state
        said = f"its process gave no sign of life for {SILENT:.0f} s; resume it"
        return replace(state, state="failed", error=said)

    def make(self) -> None:
        """The folder, for its owner alone. Raises OutputError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise OutputError(self.path, error.strerror or str(error)) from error

    def write_state(self, state: JobState) -> None:
        state.updated = time.time()
        self.make()
        write_json(self.path / "state.json", state.to_json())


def cut(text: str | None) -> str | None:
    """A message short enough to be kept and shown."""
    return text if text is None or len(text) <= _LONGEST else f"{text[:_LONGEST]} ... (cut)"


def job_names(storage: Path) -> list[str]:
    """The ids of all jobs in the storage."""
    try:
        with os.scandir(storage / "jobs") as entries:
            return [entry.name for entry in entries if _ID.fullmatch(entry.name)]
    except FileNotFoundError:
        return []


def job_folders(storage: Path) -> list[JobFolder]:
    """Of all jobs in the storage."""
    return [JobFolder(storage, job) for job in sorted(job_names(storage))]
