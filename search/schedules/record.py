"""What a schedule's folder says of it: whose it is, and which steps are done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apportion.compressors.errors import ConfigurationError, OutputError
from apportion.db.files import finite, write_json
from apportion.db.layers import format
from apportion.evaluators.workloads.workload import Workload, data_fingerprint, model_fingerprint
from apportion.search.jobs.job import Job

FILE = "schedule.json"
STEP = "step.json"


@dataclass
class Record:
    """`content`: of the file in `out`. Its `steps` are those that are done, in their order."""

    out: Path
    content: dict[str, Any]

    @property
    def steps(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.content["steps"]
        return found

    def folder(self, step: int) -> Path:
        return self.out / f"step-{step}"

    def note(self, **facts: Any) -> None:
        """Raises OutputError."""
        self.content |= facts
        write_json(self.out / FILE, finite(self.content))

    def done(self, step: Mapping[str, Any]) -> None:
        """Keep what became of a step, in its folder too. Raises OutputError."""
        folder = self.folder(step["step"])
        made(folder)
        write_json(folder / STEP, finite(dict(step)))
        self.steps.append(dict(step))
        self.note()


def begun(out: Path, job: Job, workload: Workload) -> Record:
    """The record in `out`, which is made where there is none. Raises ConfigurationError where that
    is another schedule's or job's, and OutputError."""
    # What its results do not depend on is left out.
    said = job.model_dump(mode="json", exclude={"store", "workers"})
    early = job.recovery.rewind
    key = format.digest(
        {
            "job": said,
            "model": model_fingerprint(workload.model),
            "calibration": data_fingerprint(workload.calibration),
            "rewind": None if early is None else hashlib.sha256(early.read_bytes()).hexdigest(),
        }
    )
    made(out)
    path = out / FILE
    if path.exists():
        try:
            content = json.loads(path.read_text())
            there = content["key"], content["steps"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(path, "not readable; remove it to begin again") from error
        if there[0] != key:
            raise ConfigurationError(
                f"{out} has the steps of another job, or of this one before it or its model was "
                "changed; name another folder, or remove that one"
            )
        return Record(out, content)
    assert job.schedule is not None
    record = Record(out, {"key": key, "schedule": job.schedule.model_dump(mode="json")})
    record.note(steps=[])
    return record


def made(folder: Path) -> None:
    """The folder, which is there then. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(folder, error.strerror or str(error)) from error
