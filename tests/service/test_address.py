"""Addresses of clusters and storages, in every form that people write, before anything is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apportion.compressors.errors import ConfigurationError, JobError
from apportion.evaluators.cluster import connection
from apportion.evaluators.cluster.address import (
    cluster_address,
    dashboard_address,
    proxy_of,
    spare_loopback,
)
from apportion.search.service import local, rayjobs
from apportion.search.service.client import Service
from apportion.search.service.package import pack
from tests.service.conftest import write_job


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


WRONG = ["nonsense", "head:8265", "ray://head:10001", "http://", "http://head:99999", "http://:80"]


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("where", ["option", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_a_dashboard_that_is_none_is_refused_in_one_line(
    text: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where != "option":
        monkeypatch.setenv(where, text)
    with pytest.raises(ConfigurationError) as raised:
        Service(text if where == "option" else None)
    assert "http://HEAD:8265" in str(raised.value)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_variable_says_nothing_to_any_command(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", text)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", text)
    assert dashboard_address(None) is None
    assert cluster_address() is None


def test_a_variable_of_either_name_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://one:8265")
    assert dashboard_address(None) == "http://one:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://two")
    assert dashboard_address(None) == "https://two"
    assert dashboard_address("http://three:1") == "http://three:1"


@pytest.mark.parametrize(
    "text", ["http://head:8265", "ray://head:10001", "head", "head:0x1", "head:99999", ":6379"]
)
def test_a_command_on_the_cluster_itself_refuses_what_is_none_in_one_line(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", text)
    asked: list[Any] = []
    monkeypatch.setattr(connection, "start_ray", lambda *_, **more: asked.append(more))
    with pytest.raises(ConfigurationError, match="RAY_ADDRESS is") as raised:
        connection._start(None, 1, 0)
    assert "HOST:6379" in str(raised.value)
    assert not asked


@pytest.mark.parametrize(
    ("text", "address"), [("", "local"), ("local", "local"), ("auto", "auto"), ("a:6379", "a:6379")]
)
def test_what_a_command_on_the_cluster_connects_to(
    text: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", text)
    asked: list[Any] = []
    monkeypatch.setattr(connection, "start_ray", lambda *_, **more: asked.append(more["address"]))
    connection._start(None, 1, 0)
    assert asked == [address]


def test_no_proxy_stands_between_a_machine_and_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "intranet")
    spare_loopback()
    for host in ("127.0.0.1:8265", "localhost:8265"):
        assert proxy_of(f"http://{host}") is None
    assert os.environ["no_proxy"].startswith("intranet,")
    assert proxy_of("http://head:8265") == "http://proxy:3128"
    before = os.environ["no_proxy"]
    spare_loopback()
    assert os.environ["no_proxy"] == before


@pytest.mark.parametrize("storage", ["results/run1", ".", "", "~other/x", "./x", "..", "$HOME/x"])
def test_a_relative_storage_is_refused_before_anything_is_asked(
    storage: str, tmp_path: Path
) -> None:
    service = Service("http://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="relative"):
        service.submit(write_job(tmp_path), storage=storage or ".")


def test_a_storage_with_a_password_is_refused_without_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds a password") as raised:
        Service("http://127.0.0.1:1").submit(write_job(tmp_path), storage="s3://me:hunter@bucket/x")
    assert "hunter" not in str(raised.value)


def test_a_relative_home_of_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "data")
    with pytest.raises(ConfigurationError, match="XDG_DATA_HOME is 'data'"):
        local.home()


@pytest.mark.parametrize(
    ("path", "storage", "right"),
    [
        ("databases/digits", "~/apportion", True),
        ("../digits", "/srv/apportion", True),  # its name counts
        ("..", "/srv/apportion", False),
        ("databases/..", "/srv/apportion", False),
        ("/srv/apportion/databases/x", "/srv/apportion", True),
        ("/srv/apportion", "/srv/apportion", False),
        ("/srv/apportion/../x", "/srv/apportion", False),
        ("/srv/apportion2/x", "/srv/apportion", False),
        ("/elsewhere/x", "~/apportion", False),
        ("/elsewhere/x", "s3://bucket/apportion", False),
    ],
)
def test_a_database_outside_the_storage_is_refused_by_submit(
    path: str, storage: str, right: bool, tmp_path: Path
) -> None:
    job = write_job(tmp_path, database={"path": path, "levels": ["dense", "unstr-0.50"]})
    if right:
        pack(job, tmp_path / "out", upload=True, storage=storage)
        return
    with pytest.raises(JobError, match="database.path: .* lies outside the storage"):
        pack(job, tmp_path / "out", upload=True, storage=storage)


RAYLET = """
import subprocess, sys
supervisor = "import subprocess, sys; subprocess.run(sys.argv[1], shell=True, check=True)"
subprocess.run([sys.executable, "-c", supervisor, sys.argv[1]], check=True)
"""


@pytest.mark.parametrize("is_ray", [True, False])
def test_a_heads_commands_run_by_rays_interpreter_on_the_cluster_that_was_asked(
    is_ray: bool, tmp_path: Path
) -> None:
    """Below a process with a raylet's arguments, whatever `python` and RAY_ADDRESS are there."""
    own = tmp_path / "own-python"
    own.write_text('#!/bin/sh\necho "own $RAY_ADDRESS"\n')
    other = tmp_path / "bin/python"
    other.parent.mkdir()
    other.write_text('#!/bin/sh\necho "other $RAY_ADDRESS"\n')
    for script in (own, other):
        script.chmod(0o755)
    arguments = ["--gcs-address=10.0.0.1:6379", f"--python_worker_command={own} worker.py --x=y"]
    command = f'{rayjobs.HEADS_OWN}exec "$RAY_PYTHON"'
    done = subprocess.run(
        [sys.executable, "-c", RAYLET, command, *(arguments if is_ray else [])],
        env={"PATH": f"{other.parent}:/usr/bin:/bin", "RAY_ADDRESS": "10.0.0.2:6379"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ("own 10.0.0.1:6379\n" if is_ray else "other 10.0.0.2:6379\n")
    assert not done.stderr
