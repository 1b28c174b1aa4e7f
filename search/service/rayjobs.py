"""Jobs as Ray knows them. A job's attempts are Ray jobs whose metadata name it; the client needs
the dashboard's port alone."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from apportion.compressors.errors import ConfigurationError
from apportion.evaluators.cluster.address import proxy_of, spare_loopback
from apportion.evaluators.cluster.connection import import_ray
from apportion.evaluators.cluster.scheduler import JOB, PRIORITY
from apportion.evaluators.data.files import is_url
from apportion.search.service import local

KEY = "apportion"
_READY_WITHIN = 60.0
_STOPS_WITHIN = "15"
"""Seconds that a cancelled job has to end by itself; Ray gives 3, and workers may take longer."""


HEADS_OWN = (
    "R=/proc/$(sed 's/.*) . \\([0-9]*\\) .*/\\1/' /proc/$PPID/stat)/cmdline; "
    "A=$(tr '\\0' '\\n' < $R | sed -n 's/^--gcs-address=//p'); "
    "RAY_PYTHON=$(tr '\\0' '\\n' < $R | "
    "sed -n 's/^--python_worker_command=\\([^ ]*\\) .*/\\1/p'); "
    'if [ -n "$A" ]; then export RAY_ADDRESS="$A"; fi; '
    "RAY_PYTHON=${RAY_PYTHON:-python}; "
)
"""Begins commands on the head. The parent of a job's parent is its node's raylet, whose arguments
say which cluster this is (Ray's own RAY_ADDRESS is what was last started on the machine) and which
interpreter runs it (`python` may be another, or none)."""


class RayJobs:
    """The Ray jobs at `address`, or with None on this machine's own Ray."""

    def __init__(self, address: str | None) -> None:
        self.remote = address is not None
        self.address = address
        self._client: Any = None

    def client(self, start: bool = False) -> Any:
        """Ray's job client; None where no Ray runs on this machine, unless it is to `start`. Raises
        ConfigurationError where none answers."""
        if self._client is None:
            address = (
                self.address if self.remote else (local.ensure() if start else local.running())
            )
            if address is None:
                return None
            _use_token()
            spare_loopback()
            ray = import_ray()
            from ray.job_submission import JobSubmissionClient

            logging.getLogger("ray").setLevel(logging.WARNING)
            logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(
                logging.WARNING
            )  # Ray sets it apart
            try:
                self._client = JobSubmissionClient(address)
            except (
                ConnectionError,
                RuntimeError,
                getattr(ray.exceptions, "AuthenticationError", RuntimeError),
            ) as error:
                reason = str(error).strip().splitlines()[0]
                proxy = proxy_of(address)
                through = f", through the proxy {proxy} (no_proxy says where not)" if proxy else ""
                raise ConfigurationError(
                    f"no Ray cluster answers at {address}{through}: {reason}"
                ) from error
            self.address = address
        return self._client

    def attempts(self) -> dict[str, list[Any]]:
        """Job id -> its Ray jobs, the oldest first."""
        client = self.client()
        found: dict[str, list[Any]] = {}
        if client is not None:
            for job in sorted(client.list_jobs(), key=lambda job: job.start_time or 0):
                if job.submission_id and (name := (job.metadata or {}).get(KEY)):
                    found.setdefault(name, []).append(job)
        return found

    def start(self, metadata: dict[str, str], attempt: int, working_dir: str | None = None) -> None:
        """Start an attempt at a job: its first with what lies in `working_dir`, later ones with
        what the first one kept. Raises ConfigurationError where that attempt is there already."""
        job, storage = metadata[KEY], metadata["storage"]
        python = '"$RAY_PYTHON"' if self.remote else shlex.quote(sys.executable)
        command = (
            f"exec {python} -m apportion.search.service.head.driver "
            f"--storage {quoted(storage)} --job {job} --attempt {attempt} "
            f"--file {shlex.quote(metadata['file'])} --formats {metadata['formats']}"
            + ("" if self.remote else " --local")
        )
        environment = {JOB: job, PRIORITY: metadata["priority"], "PYTHONUNBUFFERED": "1"}
        environment["RAY_JOB_STOP_WAIT_TIME_S"] = _STOPS_WITHIN
        if not self.remote:
            environment |= {
                key: os.environ[key]
                for key in ("PYTHONPATH", "XDG_CACHE_HOME")
                if key in os.environ
            }
        runtime: dict[str, Any] = {"env_vars": environment}
        if working_dir:
            runtime["working_dir"] = working_dir
        elif self.remote and not is_url(
            storage
        ):  # one at a URL is fetched by the code that the head has
            command = f"{in_package(storage, job)} {command}"
        client = self.client(start=True)
        name = f"{job}-{attempt}" if attempt > 1 else job
        if any(other.submission_id == name for other in client.list_jobs()):
            raise ConfigurationError(
                f"job {job}: attempt {attempt} was started by somebody else this moment"
            )
        command = f"{HEADS_OWN}{command}"
        self._submit(entrypoint=command, submission_id=name, runtime_env=runtime, metadata=metadata)

    def run(self, command: str) -> tuple[str, str]:
        """Run a short command on the head node, where "$RAY_PYTHON" is Ray's own interpreter; how
        it ended, and what it printed."""
        submission = self._submit(entrypoint=f"{HEADS_OWN}{command}")
        status = self.finished(submission)
        printed: str = self.client().get_job_logs(submission)
        self.client().delete_job(submission)
        return status, printed

    def _submit(self, **job: Any) -> str:
        """Ray's own agents take some seconds to be ready on a node that has just started."""
        end = time.monotonic() + _READY_WITHIN
        while True:
            try:
                return str(self.client(start=True).submit_job(**job))
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > end:
                    reason = str(error).strip().splitlines()[0]
                    raise ConfigurationError(
                        f"the cluster at {self.address} takes no job: {reason}"
                    ) from error
            time.sleep(1.0)

    def finished(self, submission: str, every: float = 0.2) -> str:
        """Wait until a Ray job has ended; its status."""
        client = self.client()
        while not (status := client.get_job_status(submission)).is_terminal():
            time.sleep(every)
        return str(status.value)


def in_package(storage: str, job: str) -> str:
    """The beginning of a command on the head node that runs the code which was submitted with the
    job."""
    package = f"{quoted(storage)}/jobs/{job}/package"
    return f"cd {package} && PYTHONPATH={package}"


def quoted(path: str) -> str:
    """For the head's shell, which knows its user's home."""
    return '"$HOME"/' + shlex.quote(path[2:]) if path.startswith("~/") else shlex.quote(path)


def _use_token() -> None:
    """Ray's own servers ask for the user's token by default; its job client sends it only where
    this says so."""
    there = (
        "RAY_AUTH_TOKEN" in os.environ
        or "RAY_AUTH_TOKEN_PATH" in os.environ
        or (Path.home() / ".ray/auth_token").is_file()
    )
    if there:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
