"""Fixtures that all tests share. The real thing in small: the digits network, five levels, 256
calibration images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.workloads.workload import Workload
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.building import build

pytest.register_assert_rewrite("tests.whole_jobs")

_RAY = (
    "tests/service/",
    "test_pool.py",
    "test_ray_pool.py",
    "test_fanout.py",
    "test_ray_training.py",
    "two_ray_workers",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What mostly waits for Ray comes first: at the end it would keep one process waiting for the
    other."""
    items.sort(key=lambda item: _scope(item.nodeid) != "ray")


def _scope(nodeid: str) -> str:
    """What is run in one process: a file, or all that starts Ray."""
    return "ray" if any(part in nodeid for part in _RAY) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes share the tests, those that start Ray take turns in one of them, and
    a file stays together. (`--dist loadgroup` says nothing, and groups nothing, with pytest 9.2 and
    xdist 3.8.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    return Scheduling(config, log)


NICENESS = "RAY_worker_niceness"
os.environ[NICENESS] = (
    "0"  # Ray's workers would otherwise wait for whatever the other test process computes
)
torch.set_num_threads(1)  # small tensors: more threads only get in each other's way
_SHARED = Path(__file__).parents[2] / "shared" / "data"
LEVELS = ["dense", "unstr-0.50", "unstr-0.75", "unstr-0.90", "unstr-0.95"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real ResNet-20, its images and the published figures, where they lie beside the
    checkout."""
    if not _SHARED.is_dir():
        pytest.skip("the shared development data does not lie beside this checkout")
    return _SHARED


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache folder stays as it is."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def database_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("databases") / "digits"


@pytest.fixture(scope="session")
def content(database_path: Path) -> dict[str, Any]:
    """A job's content. Tests change a copy (`job_file`)."""
    return {
        "workload": {"data": {"kind": "digits"}, "calibration_samples": 256, "batch_size": 64},
        "database": {"path": str(database_path), "levels": LEVELS},
        "budgets": {"flops": 0.25},
        "batchnorm": "running",
        "search": {"algorithms": ["spdy", "dp", "ga", "random"], "evaluations": 20, "seeds": [0]},
        "workers": {"count": 0, "cpus": 1},
    }


@pytest.fixture(scope="session")
def built(
    content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workload, LayerDatabase]:
    """The workload with its database, built once."""
    return build(parse_model_job(content, tmp_path_factory.mktemp("jobs") / "job.yaml"))


@pytest.fixture
def digits(built: tuple[Workload, LayerDatabase]) -> Workload:
    return built[0]


@pytest.fixture
def database(built: tuple[Workload, LayerDatabase]) -> LayerDatabase:
    return built[1]


@pytest.fixture
def job_file(
    content: dict[str, Any],
    built: tuple[Workload, LayerDatabase],  # noqa: ARG001 - the database that the jobs name must be there
    tmp_path: Path,
) -> Callable[..., Path]:
    """Write a job file into the test's own folder; keywords replace top-level keys."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}))
        return path

    return write
