"""What watching many jobs costs the page's server: python benchmarks/page.py [JOBS] [PAGES]

Fills a store and a storage with JOBS jobs of three runs each, ten of which go on, opens PAGES
streams of events, and prints the share of one core that the server takes over half a minute."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from apportion.db.runs.store import Run, RunStore
from apportion.search.service.folder import JobFolder, JobState

_LIVE = 10
_SECONDS = 30.0


def fill(folder: Path, jobs: int) -> str:
    """The store's URL. Every second job is a submitted one."""
    store = RunStore(f"sqlite:///{folder / 'runs.sqlite'}")
    store.add_job("template", {"fitness": "kl", "budgets": {"flops": 0.25}, "store": None})
    store.add_run(Run("template", "template", "ga", {}, 0, 300.0))
    store.close()
    with sqlite3.connect(folder / "runs.sqlite") as connection:
        for i in range(jobs):
            connection.execute(
                "INSERT INTO jobs SELECT ?, created + ?, spec, space FROM jobs WHERE id='template'",
                (f"{i:016x}", i),
            )
            columns = "algorithm, parameters, seed, evaluations, state, created, spent, told"
            for seed in range(3):
                connection.execute(
                    f"INSERT INTO runs (id, job, {columns}) SELECT ?, ?, {columns} FROM runs "
                    "WHERE id='template'",
                    (f"ga-s{seed}-{i:016x}", f"{i:016x}"),
                )
        connection.execute("UPDATE runs SET state='finished', told=300, asked=300, best=0.1")
    for i in range(0, jobs, 2):
        state = JobState(f"job-{i}", "job.yaml", store=store.url, search=f"{i:016x}")
        state.state = "searching" if i < 2 * _LIVE else "finished"
        JobFolder(folder / "storage", state.job).write_state(state)
    return store.url


def drain(stream: http.client.HTTPConnection) -> None:
    with contextlib.suppress(http.client.HTTPException, OSError):  # the server's end
        stream.getresponse().read()


def spent(process: int) -> float:
    """Seconds of CPU that a process has taken."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    jobs, pages = (int(text) for text in [*sys.argv[1:], "10000", "20"][:2])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = fill(folder, jobs)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "apportion", "serve", "--port", str(port), "--store", url]
        command += ["--storage", str(folder / "storage")]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        first = time.monotonic()
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            try:
                connection.request("GET", "/api/jobs")
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        answer = connection.getresponse()
        version, size = answer.headers["ETag"], len(answer.read())
        print(f"{jobs} jobs: first list {size / 2**20:.1f} MiB, {time.monotonic() - first:.1f} s")
        for _ in range(pages):
            stream = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            stream.request("GET", f"/api/events?seen={version}")
            threading.Thread(target=drain, args=(stream,), daemon=True).start()
        time.sleep(5)
        for changes in (False, True):
            before, began = spent(server.pid), time.monotonic()
            while time.monotonic() - began < _SECONDS:
                time.sleep(1.0)
                if changes:
                    with sqlite3.connect(folder / "runs.sqlite") as there:
                        there.execute(
                            "UPDATE runs SET told=told+1 WHERE job < ?", (f"{2 * _LIVE:016x}",)
                        )
            share = (spent(server.pid) - before) / (time.monotonic() - began)
            what = f"{2 * _LIVE} jobs change every second" if changes else "nothing changes"
            print(f"{pages} pages, {what}: {100 * share:.1f} % of a core", flush=True)
        server.terminate()
        server.wait(20)


if __name__ == "__main__":
    main()
