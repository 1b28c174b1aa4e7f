"""A job's folder in the service's storage, and what is said of the job there.

STORAGE/jobs/ID/           for its owner alone
STORAGE/jobs/ID/package/   what was submitted: the job, small files, the project's own code
STORAGE/jobs/ID/state.json what the job's process says of itself
STORAGE/jobs/ID/results/   what it exported
STORAGE/databases/NAME/    layer databases, shared by the jobs that name them so
STORAGE/runs.sqlite        the run store of the jobs that name none
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apportion.compressors.errors import OutputError, UnknownNameError
from apportion.db.files import finite, write_json
from apportion.db.runs.url import masked

MARK = "@apportion "
"""Begins the lines of a job's log that hold its state as JSON."""
ENDED = ("finished", "failed", "cancelled")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")


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
    step: tuple[str, int, int] | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    rate: float | None = None
    left: float | None = None
    workers: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    search: str | None = None
    store: str | None = None
    priority: float = 1.0
    formats: list[str] = field(default_factory=lambda: ["safetensors"])

    def to_json(self) -> dict[str, Any]:
        """As anybody may read it: without a password in the store's URL."""
        return dict(finite(asdict(self))) | {"store": self.store and masked(self.store)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> JobState:
        """Of this or a later version: keys that are not known are left out."""
        known = {key: value for key, value in content.items() if key in cls.__dataclass_fields__}
        return cls(**known)


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
        """None before the job's process began."""
        try:
            return JobState.from_json(json.loads((self.path / "state.json").read_text()))
        except FileNotFoundError:
            return None

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


def job_folders(storage: Path) -> list[JobFolder]:
    """Of all jobs in the storage, the oldest first."""
    folders = [path for path in (storage / "jobs").glob("*") if _ID.fullmatch(path.name)]
    return [
        JobFolder(storage, path.name)
        for path in sorted(folders, key=lambda path: path.stat().st_ctime)
    ]
