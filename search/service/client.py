"""The service as its users call it: submit, look, follow, cancel, resume, fetch, over Ray's Jobs API."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import secrets
import shlex
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from compressors.errors import ConfigurationError, OutputError, UnknownNameError
from db.cluster import import_ray
from db.shares import JOB, PRIORITY
from search.service import local
from search.service.folder import ENDED, MARK, JobFolder, JobState, job_folders

REMOTE_STORAGE = "~/apportion"
"""Where a cluster's jobs lie if nothing else is asked: in the home of the head node's user."""
_KEY = "apportion"
_BEGIN, _END = "@begin", "@end"


class Service:
    """Jobs on the cluster at `address` (its dashboard, http://head:8265), or without one on this machine, on a Ray that is
    started and stopped for the user. Raises ConfigurationError where the cluster cannot be reached."""

    def __init__(self, address: str | None = None) -> None:
        address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or _http(os.environ.get("RAY_ADDRESS"))
        self._remote = address is not None
        self._address = address
        self._client: Any = None

    def submit(
        self,
        job_file: Path,
        *,
        storage: str | None = None,
        priority: float = 1.0,
        formats: Sequence[str] = ("safetensors",),
    ) -> tuple[str, tuple[str, ...]]:
        """Check the job, upload what it needs, and start it; returns at once, with its id and what the user should know about its
        files. `storage`: a folder that all nodes see.
        Raises JobError, ConfigurationError, before anything is started."""
        from search.export import check_formats
        from search.service.package import pack  # what these need takes seconds to import
        from search.service.requirements import check_requirements

        check_formats(formats)
        with tempfile.TemporaryDirectory(prefix="apportion-") as folder:
            package = Path(folder)
            packed = pack(job_file, package, upload=self._remote)
            client = self._connect(start=True)
            if self._remote:
                check_requirements(packed.job, client, self._address or "")
            job = f"{_slug(job_file.stem)}-{secrets.token_hex(4)}"
            metadata = {
                _KEY: job,
                "file": job_file.name,
                "storage": self._storage(storage),
                "priority": f"{priority:g}",
                "formats": " ".join(formats),
                "algorithms": ", ".join(name for name, _ in packed.job.search.with_parameters()),
                "budgets": ", ".join(f"{name} {value}" for name, value in packed.job.budgets.items()),
            }
            self._start(client, metadata, 1, working_dir=str(package))
        return job, packed.notes

    def states(self) -> list[JobState]:
        """Of all jobs, the oldest first."""
        attempts = self._attempts()
        found = {job: self._state(job, attempts[job]) for job in attempts}
        if not self._remote:
            for folder in job_folders(local.home()):
                if folder.job not in found and (state := folder.read_state()) is not None:
                    found[folder.job] = _lost(state)
        return sorted(found.values(), key=lambda state: state.submitted)

    def state(self, job: str) -> JobState:
        """Raises UnknownNameError."""
        attempts = self._attempts()
        if job in attempts:
            return self._state(job, attempts[job])
        if not self._remote and (state := JobFolder(local.home(), job).read_state()) is not None:
            return _lost(state)
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
        """Stop it within seconds; everything found is kept. Nothing happens to a job that has ended."""
        client, latest = self._latest(job)
        if not latest.status.is_terminal():
            client.stop_job(latest.submission_id)
            while not client.get_job_status(latest.submission_id).is_terminal():
                time.sleep(0.2)

    def resume(self, job: str) -> None:
        """Go on with a job that was cancelled, failed or lost. Raises ConfigurationError for one that is still running."""
        state = self.state(job)
        if state.state == "finished":
            raise ConfigurationError(f"job {job} is finished: there is nothing to resume")
        if state.state not in ENDED:
            raise ConfigurationError(
                f"job {job} is {state.state}, since attempt {state.attempt}: it cannot be resumed while it runs"
            )
        client = self._connect(start=True)
        attempts = self._attempts().get(job, [])
        if attempts:
            metadata = dict(attempts[-1].metadata)
        else:  # the local Ray that knew it is gone
            metadata = {_KEY: job, "file": state.file, "storage": str(local.home()), "priority": "1", "formats": "safetensors"}
        self._start(client, metadata, max(len(attempts), state.attempt) + 1)

    def fetch(self, job: str, out: Path) -> list[Path]:
        """Copy the results of a finished job to the folder `out`; returns the files. Raises ConfigurationError, OutputError."""
        state = self.state(job)
        if state.state != "finished":
            raise ConfigurationError(f"job {job} is {state.state}: only a finished job has results")
        attempts = self._attempts().get(job, [])
        storage = Path(attempts[-1].metadata["storage"] if attempts else local.home()).expanduser()
        results = JobFolder(storage, job).results
        try:
            if not self._remote:
                shutil.copytree(results, out, dirs_exist_ok=True)
            else:
                self._fetch_by_log(attempts[-1], out)
        except OSError as error:
            raise OutputError(out, error.strerror or str(error)) from error
        return sorted(path for path in out.rglob("*") if path.is_file())

    # What Ray knows. A job's attempts are Ray jobs whose metadata name it.

    def _connect(self, start: bool = False) -> Any:
        """Ray's job client; None where jobs ran on this machine and no Ray runs now."""
        if self._client is None:
            address = self._address if self._remote else (local.ensure() if start else local.running())
            if address is None:
                return None
            _use_token()
            ray = import_ray()
            from ray.job_submission import JobSubmissionClient

            logging.getLogger("ray").setLevel(logging.WARNING)
            try:
                self._client = JobSubmissionClient(address)
            except (ConnectionError, RuntimeError, getattr(ray.exceptions, "AuthenticationError", RuntimeError)) as error:
                reason = str(error).strip().splitlines()[0]
                raise ConfigurationError(f"no Ray cluster answers at {address}: {reason}") from error
            self._address = address
        return self._client

    def _attempts(self) -> dict[str, list[Any]]:
        """Job id -> its Ray jobs, the oldest first."""
        client = self._connect()
        found: dict[str, list[Any]] = {}
        if client is not None:
            for job in sorted(client.list_jobs(), key=lambda job: job.start_time or 0):
                if job.submission_id and (name := (job.metadata or {}).get(_KEY)):
                    found.setdefault(name, []).append(job)
        return found

    def _latest(self, job: str) -> tuple[Any, Any]:
        attempts = self._attempts()
        if job not in attempts:
            known = [state.job for state in self.states()]
            if job in known:
                raise ConfigurationError(f"job {job} has ended, and the Ray that ran it is gone; its folder is "
                                         f"{JobFolder(local.home(), job).path}")  # fmt: skip
            raise UnknownNameError("job", job, known)
        return self._client, attempts[job][-1]

    def _state(self, job: str, attempts: list[Any]) -> JobState:
        """What the job's own process said last, put right by what Ray knows of that process."""
        latest = attempts[-1]
        folder = JobFolder(Path(latest.metadata["storage"]).expanduser(), job)
        state = None
        if not self._remote or _is_here(self._address):
            state = folder.read_state()
        if state is None:
            marks = [line for line in self._client.get_job_logs(latest.submission_id).splitlines() if line.startswith(MARK)]
            state = JobState.from_json(json.loads(marks[-1].removeprefix(MARK))) if marks else None
        if state is None or state.attempt < len(attempts):  # its process has said nothing yet
            state = JobState(
                job, latest.metadata.get("file", ""), attempt=len(attempts), submitted=(latest.start_time or 0) / 1000
            )
        if latest.status.is_terminal() and state.state not in ENDED:
            stopped = latest.status.value == "STOPPED"
            state.state = "cancelled" if stopped else "failed"
            state.error = None if stopped else (latest.message or "its process ended")
            state.ended = (latest.end_time or 0) / 1000 or None
        return state

    def _start(self, client: Any, metadata: dict[str, str], attempt: int, working_dir: str | None = None) -> None:
        job, storage = metadata[_KEY], metadata["storage"]
        python = "python" if self._remote else shlex.quote(sys.executable)
        command = (
            f"exec {python} -m search.service.driver --storage {_quoted(storage)} --job {job} --attempt {attempt} "
            f"--file {shlex.quote(metadata['file'])} --formats {metadata['formats']}" + ("" if self._remote else " --local")
        )
        environment = {JOB: job, PRIORITY: metadata["priority"], "PYTHONUNBUFFERED": "1"}
        if not self._remote:
            environment |= {key: os.environ[key] for key in ("PYTHONPATH", "XDG_CACHE_HOME") if key in os.environ}
        runtime: dict[str, Any] = {"env_vars": environment}
        if working_dir:
            runtime["working_dir"] = working_dir
        elif self._remote:  # the code that was submitted, which the first attempt kept
            package = f"{_quoted(storage)}/jobs/{job}/package"
            command = f"cd {package} && PYTHONPATH={package} {command}"
        client.submit_job(
            entrypoint=command, submission_id=f"{job}-{attempt}" if attempt > 1 else job, runtime_env=runtime, metadata=metadata
        )

    def _storage(self, asked: str | None) -> str:
        if asked is None:
            return REMOTE_STORAGE if self._remote else str(local.home())
        if "://" in asked:
            raise ConfigurationError(f"storage {asked!r}: a folder that all nodes of the cluster see is needed")
        return asked if self._remote else str(Path(asked).expanduser().absolute())

    def _fetch_by_log(self, latest: Any, out: Path) -> None:
        """Through the one port that is open: a small job on the head prints the results, packed."""
        storage, job = latest.metadata["storage"], latest.metadata[_KEY]
        package = f"{_quoted(storage)}/jobs/{job}/package"
        send = f"cd {package} && PYTHONPATH={package} exec python -m search.service.send --storage {_quoted(storage)} --job {job}"
        sender = self._client.submit_job(entrypoint=send)
        while not self._client.get_job_status(sender).is_terminal():
            time.sleep(0.2)
        text = self._client.get_job_logs(sender)
        if self._client.get_job_status(sender).value != "SUCCEEDED" or _BEGIN not in text:
            raise ConfigurationError(
                f"job {job}: its results cannot be sent: {text.strip().splitlines()[-1] if text.strip() else ''}"
            )
        self._client.delete_job(sender)
        packed = base64.b64decode(text.partition(_BEGIN)[2].partition(_END)[0])
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            out.mkdir(parents=True, exist_ok=True)
            archive.extractall(out, filter="data")  # nothing outside `out`


def _use_token() -> None:
    """Ray's own servers ask for the user's token by default; its job client sends it only where this says so."""
    there = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ or (Path.home() / ".ray/auth_token").is_file()
    if there:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _http(address: str | None) -> str | None:
    if address is None or address.startswith("http"):
        return address
    raise ConfigurationError(f"RAY_ADDRESS is {address}; jobs are submitted to a cluster's dashboard, http://HEAD:8265")


def _is_here(address: str | None) -> bool:
    return address is not None and any(name in address for name in ("//127.0.0.1", "//localhost"))


def _quoted(path: str) -> str:
    """For the head's shell, which knows its user's home."""
    return '"$HOME"/' + shlex.quote(path[2:]) if path.startswith("~/") else shlex.quote(path)


def _slug(text: str) -> str:
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in text).strip("-")[:40]
    return kept or "job"


def _lost(state: JobState) -> JobState:
    """Of a job whose Ray is gone: if it had not ended, it was stopped with it."""
    if state.state not in ENDED:
        state.state, state.error = "failed", "its Ray was stopped before it ended; resume it"
    return state
