"""A real Ray cluster of two nodes on this machine, with a dashboard, and the command line beside
it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import NICENESS

pytest.importorskip("ray", reason="apportion[ray] is not installed")

_BIN = Path(sys.executable).parent
_STARTS_WITHIN = 90.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServiceCluster:
    """A head with one CPU and nodes of one each; `home` is the home folder of the head's user,
    where the storage is. `head`: more options of the head, which then is alone at first, and
    variables of its `environment`; `port`: where it is to be found."""

    def __init__(
        self,
        home: Path,
        *head: str,
        environment: dict[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self.home = home
        self._environment = {
            **{
                key: value
                for key, value in os.environ.items()
                if not key.startswith("RAY_") or key == NICENESS
            },
            "PATH": f"{_BIN}:{os.environ['PATH']}",
            "HOME": str(home),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        self._nodes: list[subprocess.Popen[bytes]] = []
        port, dashboard = port or free_port(), free_port()
        self._gcs = f"127.0.0.1:{port}"
        self.address = f"http://127.0.0.1:{dashboard}"
        self._start(
            "--head",
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            "--node-ip-address=127.0.0.1",
            *head,
        )
        end = time.monotonic() + _STARTS_WITHIN
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{self.address}/api/version", timeout=5).read()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        else:
            raise RuntimeError("the cluster's head did not start")
        if not head:
            self.add_node()

    def add_node(self) -> subprocess.Popen[bytes]:
        """One more, when it has joined: nodes that start on one machine share folders with those
        that run."""
        there = self.alive()
        node = self._start(f"--address={self._gcs}")
        while self.alive() <= there:
            time.sleep(0.5)
        return node

    def alive(self) -> int:
        """Nodes, the head among them."""
        from ray.util.state import list_nodes

        return len(
            list_nodes(
                address=self.address,
                filters=[("state", "=", "ALIVE")],
                raise_on_missing_output=False,
            )
        )

    def remove(self, node: subprocess.Popen[bytes]) -> None:
        """As a spot node goes: all its processes at once."""
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()
        self._nodes.remove(node)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [
            str(_BIN / "ray"),
            "start",
            "--block",
            "--num-cpus=1",
            f"--object-store-memory={100 << 20}",
            *arguments,
        ]
        command.append(
            f"--dashboard-agent-listen-port={free_port()}"
        )  # two nodes on a machine cannot share the usual one
        node = subprocess.Popen(
            command,
            env=self._environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._nodes.append(node)
        return node

    def close(self) -> None:
        for node in reversed(self._nodes):
            node.terminate()
        for node in self._nodes:
            try:
                node.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()
        self._nodes = []

    def apportion(
        self, *arguments: str | Path, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """The command line, as a user on another machine calls it."""
        command = [str(_BIN / "apportion"), *map(str, arguments), "--address", self.address]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def submit(self, job: Path, *options: str) -> str:
        return self.apportion("submit", job, *options).stdout.strip()

    def state(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.apportion("status", job, "--json").stdout)
        return found

    def wait(self, job: str, *states: str, seconds: float = 120) -> dict[str, Any]:
        """Until the job is in one of `states`."""
        end = time.monotonic() + seconds
        while (state := self.state(job))["state"] not in states:
            assert time.monotonic() < end, json.dumps(state)
            assert state["state"] != "failed", json.dumps(state)
            time.sleep(0.5)
        return state


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceCluster]:
    cluster = ServiceCluster(tmp_path_factory.mktemp("home"))
    try:
        yield cluster
    finally:
        cluster.close()


def write_job(folder: Path, name: str = "job.yaml", **change: Any) -> Path:
    """A job on the digits, two runs."""
    content: dict[str, Any] = {
        "workload": {"data": {"kind": "digits"}, "calibration_samples": 256, "batch_size": 64},
        "database": {
            "path": "databases/digits",
            "levels": ["dense", "unstr-0.50", "unstr-0.75", "unstr-0.90", "unstr-0.95"],
        },
        "budgets": {"flops": 0.25},
        "batchnorm": "running",
        "search": {"algorithms": ["spdy", "local"], "evaluations": 30, "seeds": [0]},
        "workers": {"count": 2, "at_least": 1, "cpus": 1},
    }
    path = folder / name
    path.write_text(yaml.safe_dump(content | change))
    return path
