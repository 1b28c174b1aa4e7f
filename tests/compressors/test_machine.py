"""Memory and folders as containers have them."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from apportion.compressors import folders
from apportion.compressors.elimination import work
from apportion.compressors.errors import ConfigurationError
from apportion.compressors.machine import free_memory, usable_cpus
from apportion.compressors.threads import limit_threads
from apportion.search.cli.main import main

GIB = 2**30


def machine(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def meminfo(available: int) -> str:
    return f"MemTotal: 64000000 kB\nMemFree: 1000 kB\nMemAvailable: {available // 1024} kB"


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"
MACHINES: dict[str, tuple[dict[str, object], int]] = {
    "a warm cache is free": ({}, 20 * GIB),
    "version 2": (
        {
            "proc/self/cgroup": "0::/",
            f"{V2}/memory.max": 4 * GIB,
            f"{V2}/memory.current": 3 * GIB,
            f"{V2}/memory.stat": f"anon 5\ninactive_file {2 * GIB}",
        },
        3 * GIB,
    ),
    "no limit": (
        {
            "proc/self/cgroup": "0::/a",
            f"{V2}/a/memory.max": "max",
            f"{V2}/a/memory.current": 3 * GIB,
        },
        20 * GIB,
    ),
    "a limit further out": (
        {
            "proc/self/cgroup": "0::/slurm/job/step",
            f"{V2}/slurm/job/step/memory.max": "max",
            f"{V2}/slurm/job/step/memory.current": GIB,
            f"{V2}/slurm/memory.max": 8 * GIB,
            f"{V2}/slurm/memory.current": 6 * GIB,
        },
        2 * GIB,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/job\n0::/",
            f"{V1}/job/memory.limit_in_bytes": 2 * GIB,
            f"{V1}/job/memory.usage_in_bytes": GIB,
            f"{V1}/job/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB // 2}",
            f"{V1}/memory.limit_in_bytes": 2**63 - 4096,
            f"{V1}/memory.usage_in_bytes": 30 * GIB,
        },
        3 * GIB // 2,
    ),
    "version 1, seen from inside": (
        {
            "proc/self/cgroup": "4:memory:/docker/0123",
            f"{V1}/memory.limit_in_bytes": 2 * GIB,
            f"{V1}/memory.usage_in_bytes": GIB,
        },
        GIB,
    ),
    "over its limit": (
        {
            "proc/self/cgroup": "0::/",
            f"{V2}/memory.max": GIB,
            f"{V2}/memory.current": 2 * GIB,
        },
        0,
    ),
}


@pytest.mark.parametrize("name", MACHINES)
def test_free_memory_is_what_is_left_for_this_process(name: str, tmp_path: Path) -> None:
    files, expected = MACHINES[name]
    root = machine(tmp_path, {"proc/meminfo": meminfo(20 * GIB), **files})
    assert free_memory(root) == expected


def test_a_layer_gets_a_quarter_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, share in ((None, GIB), (8 * GIB, 2 * GIB), (0, GIB // 4)):
        monkeypatch.setattr(work, "free_memory", lambda free=free: free)
        assert work.default_memory(torch.device("cpu")) == share


def test_where_nothing_tells_nothing_is_concluded(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    assert (free_memory() or 0) > 0


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user: a number without a name, and no HOME."""

    def unknown(uid: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_is_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder, name in ((folders.cache_folder, "XDG_CACHE_HOME"), (folders.data_folder, "XDG_DA")):
        with pytest.raises(ConfigurationError, match=f"has no home folder.*HOME, or {name}"):
            folder()
    with pytest.raises(ConfigurationError, match="~/job: there is no such home folder"):
        folders.expanded("~/job")
    assert folders.expanded("/a/~") == Path("/a/~")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folders.cache_folder() == tmp_path / "apportion"


@pytest.mark.usefixtures("homeless")
def test_commands_say_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "workload: {data: {kind: digits}}\n"
        "database: {path: ~/database, levels: [dense, unstr-0.50]}\n"
        "budgets: {flops: 0.5}\n"
    )
    for command in (["search", str(job)], ["runs", "--store", "sqlite:///~/runs.sqlite"]):
        assert main(command) == 1
        err = capsys.readouterr().err
        assert "there is no" in err
        assert "home folder" in err
        assert (err.count("\n"), err.count("unexpected")) == (1, 0)


def test_without_docstrings_spdy_cma_is_refused_by_name() -> None:
    code = (
        "import numpy as np\n"
        "from apportion.compressors.errors import ConfigurationError\n"
        "from apportion.search.algorithms import registry\n"
        "try:\n    registry.resolve('spdy-cma')\n"
        "except ConfigurationError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONOPTIMIZE": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cma cannot be loaded without docstrings" in done.stdout, done.stderr


CPUS: dict[str, tuple[dict[str, object], int]] = {
    "no limit": ({"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "max 100000"}, 16),
    "a quota of two and a half": (
        {"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "250000 100000"},
        3,
    ),
    "a quota further out": (
        {
            "proc/self/cgroup": "0::/slurm/job",
            f"{V2}/slurm/job/cpu.max": "max 100000",
            f"{V2}/slurm/cpu.max": "400000 100000",
        },
        4,
    ),
    "less than one": ({"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "1000 100000"}, 1),
    "more than there are": ({"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "9900000 100000"}, 16),
    "version 1": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/job",
            "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": 200000,
            "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": 100000,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1,
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000,
        },
        2,
    ),
}


@pytest.mark.parametrize("name", CPUS)
def test_threads_are_those_that_this_process_may_use(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, expected = CPUS[name]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert usable_cpus(machine(tmp_path, files)) == expected


def test_an_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert usable_cpus(tmp_path) == 1
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        limit_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
