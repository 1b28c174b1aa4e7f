"""A Ray of the user's own on this machine, started for the first submitted job and stopped after
the last: python -m apportion.search.service.local"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from apportion.compressors.errors import ConfigurationError
from apportion.compressors.folders import data_folder
from apportion.db.files import write_json
from apportion.db.runs.lease import is_alive
from apportion.evaluators.cluster.connection import import_ray

_IDLE = 20.0
"""Seconds without a job after which Ray is stopped."""
_STARTS_WITHIN = 90.0


def home() -> Path:
    """$XDG_DATA_HOME/apportion, or ~/.local/share/apportion: the storage of jobs that run on this
    machine."""
    return data_folder()


def running(what: str = "address") -> str | None:
    """The address of the local Ray's job server, or of its `cluster`; None where there is none."""
    try:
        there = json.loads((home() / "local.json").read_text())
        return str(there[what]) if is_alive(there["pid"]) else None
    except (FileNotFoundError, ValueError, KeyError):
        return None


def ensure() -> str:
    """The address of the local Ray, started where there is none. Raises ConfigurationError. Does
    not import Ray here: its token may not be there yet."""
    home().mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + _STARTS_WITHIN
    keeper = None
    while (address := running()) is None:
        if keeper is None:
            with (home() / "local.log").open("ab") as log:
                command = [sys.executable, "-m", "apportion.search.service.local"]
                keeper = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        if keeper.poll() not in (None, 0) or time.monotonic() > end:
            raise ConfigurationError(
                f"Ray cannot be started on this machine; {home() / 'local.log'} says why"
            )
        if keeper.poll() == 0:  # another one is starting it
            keeper = None
        time.sleep(0.2)
    return address


def main() -> int:
    """Keep Ray as long as there are jobs."""
    with (home() / "local.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(1.0)
            return 0
        os.environ.pop("RAY_ADDRESS", None)
        ray = import_ray()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        context = ray.init(
            address="local",
            include_dashboard=True,
            dashboard_port=_free_port(),
            object_store_memory=512 << 20,
            log_to_driver=False,
        )
        address = f"http://{context.address_info['webui_url']}"
        try:
            cluster = context.address_info["gcs_address"]
            write_json(
                home() / "local.json", {"address": address, "cluster": cluster, "pid": os.getpid()}
            )
            _serve(address)
        finally:
            (home() / "local.json").unlink(missing_ok=True)
            ray.shutdown()
    return 0


def _serve(address: str) -> None:
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(address)
    busy = time.monotonic()
    while time.monotonic() - busy < _IDLE:
        time.sleep(1.0)
        if any(_is_active(job) for job in client.list_jobs()):
            busy = time.monotonic()


def _is_active(job: Any) -> bool:
    return not job.status.is_terminal() and bool(job.submission_id)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
