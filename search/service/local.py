"""A Ray of the user's own on this machine, started for the first submitted job and stopped after
the last: python -m apportion.search.service.local"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from apportion.compressors.errors import ConfigurationError
from apportion.compressors.folders import data_folder
from apportion.compressors.machine import usable_cpus
from apportion.db.files import write_json
from apportion.evaluators.cluster.address import spare_loopback
from apportion.evaluators.cluster.connection import import_ray
from apportion.search.service.folder import ENDED, SILENT, JobFolder, job_folders

_IDLE = 20.0
"""Seconds without a job after which Ray is stopped."""
_STARTS_WITHIN = 90.0


def home() -> Path:
    """$XDG_DATA_HOME/apportion, or ~/.local/share/apportion: the storage of jobs that run on this
    machine. Raises ConfigurationError for a relative one, which is another in every folder."""
    named = os.environ.get("XDG_DATA_HOME")
    if named and not Path(named).is_absolute():
        raise ConfigurationError(f"XDG_DATA_HOME is {named!r}, which is no absolute path")
    return data_folder()


def file(suffix: str) -> Path:
    """`lock`, which whoever keeps Ray holds; `json`, where that Ray is; `log`. Of this machine
    since its start, and of this container: others may share the home."""
    machine = f"{platform.node()} {_boot()} {os.readlink('/proc/self/ns/pid')}"
    digest = hashlib.sha256(machine.encode()).hexdigest()[:8]
    return home() / f"local-{digest}.{suffix}"


def running(what: str = "address") -> str | None:
    """The address of the local Ray's job server, or of its `cluster`; None where there is none: a
    process number may be another's by now, so that only who holds the lock is believed."""
    try:
        with file("lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                there = json.loads(file("json").read_text())
                return str(there[what]) if _started(there["pid"]) == there["started"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None  # nobody held it


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started(process: int) -> str | None:
    """When a process began, in ticks since the machine did; None where there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def ensure() -> str:
    """The address of the local Ray, started where there is none. Raises ConfigurationError. Does
    not import Ray here: its token may not be there yet."""
    home().mkdir(parents=True, exist_ok=True, mode=0o700)
    end = time.monotonic() + _STARTS_WITHIN
    keeper = None
    while (address := running()) is None:
        if keeper is None:
            with file("log").open("ab") as log:
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
                f"Ray cannot be started on this machine; {file('log')} says why"
            )
        if keeper.poll() == 0:  # another one is starting it
            keeper = None
        time.sleep(0.2)
    return address


def main() -> int:
    """Keep Ray as long as there are jobs."""
    with file("lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(1.0)
            return 0
        file("json").unlink(missing_ok=True)  # of one that was killed
        os.environ.pop("RAY_ADDRESS", None)
        spare_loopback()
        ray = import_ray()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        context = ray.init(
            address="local",
            num_cpus=usable_cpus(),
            include_dashboard=True,
            dashboard_port=_free_port(),
            object_store_memory=512 << 20,
            log_to_driver=False,
        )
        address = f"http://{context.address_info['webui_url']}"
        try:
            cluster = context.address_info["gcs_address"]
            there = {"address": address, "cluster": cluster, "pid": os.getpid()}
            write_json(file("json"), there | {"started": _started(os.getpid())})
            _serve(address)
        finally:
            file("json").unlink(missing_ok=True)
            ray.shutdown()
    return 0


def _serve(address: str) -> None:
    """Until there has been no job for a while. The jobs' own signs of life count as much as what
    Ray's job server says, which a machine short of memory may have lost."""
    from ray.job_submission import JobSubmissionClient

    client = None
    busy = time.monotonic()
    while time.monotonic() - busy < _IDLE:
        time.sleep(1.0)
        try:
            client = client or JobSubmissionClient(address)
            active = any(_is_active(job) for job in client.list_jobs())
        except Exception as error:  # whatever is wrong with it, it must not end jobs that run
            print(f"the job server does not answer: {error}", file=sys.stderr, flush=True)
            active = False
        if active or any(_gives_signs(folder) for folder in job_folders(home())):
            busy = time.monotonic()


def _gives_signs(folder: JobFolder) -> bool:
    if not folder.gave_signs() or folder.silence() >= SILENT:
        return False
    state = folder.read_state()
    return state is not None and state.state not in ENDED


def _is_active(job: Any) -> bool:
    return not job.status.is_terminal() and bool(job.submission_id)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
