"""The service as its users call it: submit, look, follow, cancel, resume, fetch, over Ray's Jobs
API."""

from __future__ import annotations

import base64
import io
import json
import secrets
import shlex
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec

from apportion.compressors.errors import ConfigurationError, JobError, OutputError, UnknownNameError
from apportion.evaluators.cluster.address import dashboard_address, is_loopback
from apportion.evaluators.cluster.room import Room
from apportion.evaluators.data.files import is_url
from apportion.search.jobs.titles import title
from apportion.search.service import local, stored
from apportion.search.service.folder import (
    ENDED,
    MARK,
    SILENT,
    JobFolder,
    JobState,
    cut,
    job_folders,
)
from apportion.search.service.head.dump_results import BEGIN, END
from apportion.search.service.mirror import Mirror, check_storage, fetch
from apportion.search.service.rayjobs import KEY, RayJobs, in_package, quoted

REMOTE_STORAGE = "~/apportion"
"""Where a cluster's jobs lie if nothing else is asked: in the home of the head node's user."""


class Service:
    """Jobs on the cluster at `address` (its dashboard, http://head:8265), or without one on this
    machine, on a Ray that is started and stopped for the user. All methods raise ConfigurationError
    where the cluster cannot be reached."""

    def __init__(self, address: str | None = None, storage: str | None = None) -> None:
        """`storage`: where jobs lie that Ray has forgotten, as it does when a cluster's head is
        started anew; a folder of the head node, or a URL."""
        self._ray = RayJobs(dashboard_address(address))
        self._kept = check_storage(storage or REMOTE_STORAGE)

    def submit(
        self,
        job_file: Path,
        *,
        storage: str | None = None,
        priority: float = 1.0,
        formats: Sequence[str] = ("safetensors",),
    ) -> tuple[str, tuple[str, ...]]:
        """Check the job, upload what it needs, and start it; returns at once, with its id and what
        the user should know about its files. `storage`: a folder of the head node, or a URL. Raises
        JobError, ConfigurationError, before anything is started."""
        from apportion.search.export.exporting import check_formats
        from apportion.search.service.package import pack  # what these need takes seconds to import
        from apportion.search.service.requirements import (
            check_requirements,
            remote_room,
            this_machine,
        )

        check_formats(formats)
        storage = self._storage(storage)
        with tempfile.TemporaryDirectory(prefix="apportion-") as folder:
            packed = pack(job_file, Path(folder), upload=self._ray.remote, storage=storage)
            if self._ray.remote:
                self._ray.client()
                room = remote_room(self._ray.address or "", self._ray.run)
            else:
                room = Room([this_machine()])
            check_requirements(packed.job, room)
            if is_url(storage) and not (packed.job.store or "").startswith(("postgres", "env:")):
                raise JobError(
                    job_file, "store", "a job whose storage is a URL needs a PostgreSQL store"
                )
            job = f"{_slug(job_file.stem)}-{secrets.token_hex(4)}"
            # Ray names an upload by its content, and drops it with the first job that used it.
            (Path(folder) / "submission").write_text(job)
            metadata = {
                KEY: job,
                "file": job_file.name,
                "storage": storage,
                "priority": f"{priority:g}",
                "formats": " ".join(formats),
                "algorithms": ", ".join(name for name, _ in packed.job.search.with_parameters()),
                "budgets": title(packed.job.budgets),
            }
            self._ray.start(metadata, 1, working_dir=folder)
        return job, packed.notes

    def states(self) -> list[JobState]:
        """Of all jobs, the oldest first. A cluster's storage is asked where Ray knows no job."""
        attempts = self._attempts()
        found = {job: self._state(job, own) for job, own in attempts.items()}
        if not attempts or not self._ray.remote:
            found = self._stored() | found
        return sorted(found.values(), key=lambda state: state.submitted)

    def state(self, job: str) -> JobState:
        """Raises UnknownNameError."""
        attempts = self._attempts()
        if job in attempts:
            return self._state(job, attempts[job])
        JobFolder(Path(), job)  # whether it can be a job's name
        if job in (stored := self._stored(job)):
            return stored[job]
        raise UnknownNameError("job", job, [state.job for state in self.states()])

    def logs(self, job: str, follow: bool = False) -> Iterator[str]:
        """Lines of the latest attempt's log; with `follow`, until the job ends."""
        client, latest = self._latest(job)
        shown = 0
        while True:
            ended = client.get_job_status(latest.submission_id).is_terminal()
            lines = client.get_job_logs(latest.submission_id).splitlines()
            yield from (line for line in lines[shown:] if not line.startswith(MARK))
            shown = len(lines)
            if ended or not follow:
                return
            time.sleep(1.0)

    def cancel(self, job: str) -> None:
        """Stop it within seconds; everything found is kept. Nothing happens to a job that has
        ended."""
        client, latest = self._latest(job)
        if not latest.status.is_terminal():
            client.stop_job(latest.submission_id)
            self._ray.finished(latest.submission_id)

    def resume(self, job: str) -> None:
        """Go on with a job that was cancelled, failed or lost. Raises ConfigurationError for one
        that is still running."""
        state = self.state(job)
        if state.state == "finished":
            raise ConfigurationError(f"job {job} is finished: there is nothing to resume")
        if state.state not in ENDED:
            raise ConfigurationError(
                f"job {job} is {state.state}, since attempt {state.attempt}: it cannot be resumed "
                "while it runs"
            )
        attempts = self._attempts().get(job, [])
        if attempts:
            metadata = dict(attempts[-1].metadata)
        else:  # the Ray that knew it is gone
            metadata = {KEY: job, "file": state.file, "storage": self._storage_of(job)}
            metadata |= {"priority": f"{state.priority:g}", "formats": " ".join(state.formats)}
        self._ray.start(metadata, max(len(attempts), state.attempt) + 1)

    def fetch(self, job: str, out: Path) -> list[Path]:
        """Copy the results of a finished job to the folder `out`; returns the files. Raises
        ConfigurationError, OutputError."""
        state = self.state(job)
        if state.state != "finished":
            raise ConfigurationError(f"job {job} is {state.state}: only a finished job has results")
        try:
            if self._ray.remote and is_url(storage := self._storage_of(job)):
                system, path = fsspec.url_to_fs(f"{storage.rstrip('/')}/jobs/{job}/results")
                fetch(system, path, out)
            elif self._ray.remote:
                self._fetch_by_log(job, out)
            else:
                shutil.copytree(JobFolder(local.home(), job).results, out, dirs_exist_ok=True)
        except OSError as error:
            raise OutputError(out, error.strerror or str(error)) from error
        return sorted(path for path in out.rglob("*") if path.is_file())

    def _attempts(self) -> dict[str, list[Any]]:
        """What Ray knows; on this machine nothing where its job server is gone: jobs may go on."""
        try:
            return self._ray.attempts()
        except ConfigurationError:
            if self._ray.remote:
                raise
            return {}

    def _stored(self, job: str = "*") -> dict[str, JobState]:
        """What the storage says of a job, or of all, that Ray does not know."""
        if not self._ray.remote:
            folders = job_folders(local.home())
            found = [(f, state) for f in folders if (state := f.read_state()) is not None]
            return {f.job: _lost(state, f) for f, state in found if job in ("*", f.job)}
        if is_url(self._kept):
            mirror = Mirror(self._kept, kept="page")
            mirror.follow()
            read = [folder.read_state() for folder in job_folders(mirror.folder)]
            states = [state for state in read if state is not None]
        else:
            told = self._ray.run(_script(self._kept, job))[1].splitlines()
            lines = [line.partition(stored.MARK)[2] for line in told if stored.MARK in line]
            states = [state for line in lines if (state := _told(line)) is not None]
        return {state.job: _lost(state) for state in states if job in ("*", state.job)}

    def _storage_of(self, job: str) -> str:
        if job in (attempts := self._attempts()):
            return str(attempts[job][-1].metadata["storage"])
        return self._kept if self._ray.remote else str(local.home())

    def _latest(self, job: str) -> tuple[Any, Any]:
        attempts = self._ray.attempts()
        if job in attempts:
            return self._ray.client(), attempts[job][-1]
        self.state(job)
        raise ConfigurationError(
            f"job {job} is not running, and the Ray that ran it is gone; its folder is "
            f"{self._storage_of(job)}/jobs/{job}"
        )

    def _state(self, job: str, attempts: list[Any]) -> JobState:
        """What the job's own process said last, put right by what Ray knows of that process."""
        latest = attempts[-1]
        state = None
        storage = latest.metadata["storage"]
        if not is_url(storage) and (not self._ray.remote or is_loopback(self._ray.address)):
            state = JobFolder(Path(storage).expanduser(), job).read_state()
        if state is None:
            log = self._ray.client().get_job_logs(latest.submission_id).splitlines()
            marks = [line for line in log if line.startswith(MARK)]
            state = _told(marks[-1].removeprefix(MARK)) if marks else None
        if state is None or state.attempt < len(attempts):  # its process has said nothing yet
            begun = (latest.start_time or 0) / 1000
            state = JobState(
                job, latest.metadata.get("file", ""), attempt=len(attempts), submitted=begun
            )
        if latest.status.is_terminal() and state.state not in ENDED:
            stopped = latest.status.value == "STOPPED"
            state.state = "cancelled" if stopped else "failed"
            state.error = None if stopped else cut(latest.message or "its process ended")
            state.ended = (latest.end_time or 0) / 1000 or None
        return state

    def _storage(self, asked: str | None) -> str:
        if not self._ray.remote:
            if asked is not None:
                raise ConfigurationError(
                    f"storage: jobs of this machine lie in {local.home()}; XDG_DATA_HOME moves that"
                )
            return str(local.home())
        return check_storage(asked or REMOTE_STORAGE)

    def _fetch_by_log(self, job: str, out: Path) -> None:
        """Through the one port that is open: a small job on the head prints the results, packed."""
        storage = self._storage_of(job)
        module = "apportion.search.service.head.dump_results"
        send = f'exec "$RAY_PYTHON" -m {module} --storage {quoted(storage)} --job {job}'
        status, text = self._ray.run(f"{in_package(storage, job)} {send}")
        if status != "SUCCEEDED" or BEGIN not in text:
            reason = (text.strip().splitlines() or ["no reason is known"])[-1]
            raise ConfigurationError(f"job {job}: its results cannot be sent: {reason}")
        packed = base64.b64decode(text.partition(BEGIN)[2].partition(END)[0])
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            out.mkdir(parents=True, exist_ok=True)
            archive.extractall(out, filter="data")  # nothing outside `out`


def _told(text: str) -> JobState | None:
    """A state as the log tells it; None of a line that was cut or altered."""
    try:
        return JobState.from_json(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _slug(text: str) -> str:
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in text).strip("-")[:40]
    return kept or "job"


def _lost(state: JobState, folder: JobFolder | None = None) -> JobState:
    """Of a job that Ray does not know: if it has not ended, and gives no sign of life, it was
    stopped with its Ray."""
    lives = folder is not None and folder.gave_signs() and folder.silence() < SILENT
    if state.state not in ENDED and not lives:
        state.state, state.error = "failed", "its Ray was stopped before it ended; resume it"
    return state


def _script(storage: str, job: str) -> str:
    """A command for the head that prints what its storage says."""
    text = base64.b64encode(Path(stored.__file__).read_bytes()).decode()
    run = f"import base64; exec(base64.b64decode('{text}'))"
    return f'"$RAY_PYTHON" -c "{run}" {quoted(storage)} {shlex.quote(job)}'
