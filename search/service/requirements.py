"""Whether there is, or will be, room for a job's workers: asked before anything is queued."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from apportion.compressors.machine import usable_cpus
from apportion.evaluators.cluster import limits
from apportion.evaluators.cluster.room import Resources, Room
from apportion.search.jobs.job import AnyJob, Job


def check_requirements(job: AnyJob, room: Room) -> None:
    """Raises ConfigurationError where the job's workers will never fit."""
    if isinstance(job, Job):
        workers = job.workers
        count = max(1, workers.count if workers.at_least is None else workers.at_least)
        room.check(count, workers.each)


def this_machine() -> dict[str, float]:
    """The resources of the Ray that the service starts on this machine."""
    return {"CPU": usable_cpus(), "GPU": torch.cuda.device_count()}


def remote_room(address: str, run: Callable[[str], tuple[str, str]]) -> Room:
    """Of the cluster with the dashboard `address`; `run` runs a command on its head."""
    return Room(_nodes(address), lambda: _limits(run))


def _nodes(address: str) -> list[Resources]:
    from ray.util.state import list_nodes

    nodes = list_nodes(
        address=address, filters=[("state", "=", "ALIVE")], raise_on_missing_output=False
    )
    return [node.resources_total or {} for node in nodes]


def _limits(run: Callable[[str], tuple[str, str]]) -> dict[str, Any] | None:
    script = base64.b64encode(Path(limits.__file__).read_bytes()).decode()
    _, text = run(f'"$RAY_PYTHON" -c "import base64; exec(base64.b64decode(\'{script}\'))"')
    told = [line.partition(limits.MARK)[2] for line in text.splitlines() if limits.MARK in line]
    found: dict[str, Any] | None = json.loads(told[-1]) if told else None
    return found
