"""A PostgreSQL server of one's own for tests, in a temporary folder, reached by a socket in it."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.needs import missing


class PostgresServer:
    """Runs as the user postgres where the tests run as root, which it refuses."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self._folder, self._binaries = folder, binaries
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        self._do("initdb", "-D", str(folder / "data"), "-U", "tester", "--auth=trust", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://tester@/postgres?host={self._folder}"

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self._folder}' -c fsync=off"
        self._do(
            "pg_ctl",
            "start",
            "-w",
            "-D",
            str(self._folder / "data"),
            "-o",
            options,
            "-l",
            str(self._folder / "log"),
        )

    def stop(self, mode: str = "fast") -> None:
        """`immediate` drops connections as a crash would."""
        self._do("pg_ctl", "stop", "-w", "-m", mode, "-D", str(self._folder / "data"))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All its processes are stopped inside: it answers nothing, and breaks nothing off."""
        postmaster = int((self._folder / "data" / "postmaster.pid").read_text().split()[0])
        stopped = [postmaster]
        os.kill(postmaster, signal.SIGSTOP)  # first: no new ones
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                number, fields = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
                if int(fields[1]) == postmaster:
                    os.kill(number, signal.SIGSTOP)
                    stopped.append(number)
        try:
            yield
        finally:
            for number in stopped:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGCONT)

    def make_database(self, name: str) -> str:
        self._do("createdb", "-h", str(self._folder), "-U", "tester", name)
        return self.url.replace("/postgres?", f"/{name}?")

    def _do(self, program: str, *arguments: str) -> None:
        home = {"cwd": self._folder, "user": self._user, "timeout": 120}
        subprocess.run(
            [self._binaries / program, *arguments], check=True, stdout=subprocess.DEVNULL, **home
        )  # type: ignore[call-overload]


def binaries() -> Path:
    """Skips the test where no server is installed."""
    found = sorted(Path(path).parent for path in glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if not found and (there := shutil.which("initdb")):
        found = [Path(there).resolve().parent]
    if not found:
        missing("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="psycopg is not installed (the extra postgres)")
    if os.getuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            missing("PostgreSQL does not run as root, and there is no user postgres")
    return found[-1]


@contextmanager
def running() -> Iterator[PostgresServer]:
    there = binaries()
    folder = Path(
        tempfile.mkdtemp(prefix="apportion-pg-", dir="/tmp")
    )  # a socket's path must be short
    try:
        server = PostgresServer(folder, there)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
