"""Fair shares: how many workers each job may have when several share a Ray cluster.

One detached actor on the cluster keeps the list of jobs; every job asks it for its share, which is
also its sign of life."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

JOB, PRIORITY = "APPORTION_JOB", "APPORTION_PRIORITY"
"""Environment variables that the service sets for a job's process; without the first, a job takes
what it asks for."""
_NAME, _NAMESPACE = "apportion-shares", "apportion"
_ASK_EVERY = 2.0
_GONE = 60.0
"""Seconds without a sign of life after which a job's share is the others'."""


@dataclass(slots=True)
class Demand:
    """A job that wants workers with `cpus` and `gpus` each. `running`: it has had one already."""

    wanted: int
    cpus: float
    gpus: float
    priority: float
    running: bool = False
    heard: float = 0.0


def divide(demands: Sequence[Demand], cpus: float, gpus: float) -> list[int]:
    """Workers of each job, given in turn to the one that has least for its priority, the earlier
    one first, as long as they fit. Jobs that run keep one, so that what they hold in memory is not
    lost."""
    given = [0] * len(demands)
    left = {"cpus": cpus, "gpus": gpus}

    def give(i: int) -> bool:
        one = demands[i]
        if (
            given[i] >= one.wanted
            or one.cpus > left["cpus"] + 1e-9
            or one.gpus > left["gpus"] + 1e-9
        ):
            return False
        left["cpus"] -= one.cpus
        left["gpus"] -= one.gpus
        given[i] += 1
        return True

    for i, one in enumerate(demands):
        if one.running:
            give(i)
    while any(
        give(i)
        for i in sorted(range(len(demands)), key=lambda i: (given[i] / demands[i].priority, i))
    ):
        pass
    return given


class Scheduler:
    """The actor."""

    def __init__(self) -> None:
        self._demands: dict[str, Demand] = {}

    def ask(
        self,
        job: str,
        wanted: int,
        cpus: float,
        gpus: float,
        priority: float,
        there: Mapping[str, float],
    ) -> int:
        """A job's question, which is also its sign of life.

        Args:
            job: who asks.
            wanted: workers that it would have at the most.
            cpus: of each worker.
            gpus: of each worker.
            priority: its share beside other jobs', above 0.
            there: the cluster's resources by name.

        Returns:
            The number of workers that it may have now.
        """
        now = time.monotonic()
        own = self._demands.setdefault(job, Demand(wanted, cpus, gpus, priority))
        own.wanted, own.cpus, own.gpus, own.priority, own.heard = wanted, cpus, gpus, priority, now
        for name in [name for name, one in self._demands.items() if now - one.heard > _GONE]:
            del self._demands[name]
        given = divide(list(self._demands.values()), there.get("CPU", 0.0), there.get("GPU", 0.0))
        share = given[list(self._demands).index(job)]
        own.running = own.running or share > 0
        return share

    def leave(self, job: str) -> None:
        self._demands.pop(job, None)


class Quota:
    """A job's side of it. `count()` is `wanted` where no service runs the job."""

    def __init__(self, ray: Any, wanted: int, cpus: float, gpus: float) -> None:
        self._ray, self._wanted = ray, wanted
        self._job = os.environ.get(JOB)
        self._priority = float(os.environ.get(PRIORITY, "1"))
        self._needs = (cpus, gpus)
        self._known = wanted
        self._asked = -_ASK_EVERY

    @property
    def shared(self) -> bool:
        """Whether `count` may change."""
        return self._job is not None

    def count(self) -> int:
        """Workers that the job may have now; asked anew every two seconds."""
        if self._job is None or time.monotonic() - self._asked < _ASK_EVERY:
            return self._known
        self._asked = time.monotonic()
        try:
            actor = _actor(self._ray)
            there = self._ray.cluster_resources()
            asked = actor.ask.remote(self._job, self._wanted, *self._needs, self._priority, there)
            self._known = self._ray.get(asked, timeout=30)
        except (
            self._ray.exceptions.RayError
        ):  # its node was lost: a new one is made at the next question
            pass
        return self._known

    def leave(self) -> None:
        """Hand the share back."""
        if self._job is not None:
            with suppress(self._ray.exceptions.RayError):  # then it is forgotten after a minute
                self._ray.get(_actor(self._ray).leave.remote(self._job), timeout=10)


def _actor(ray: Any) -> Any:
    options = {
        "name": _NAME,
        "namespace": _NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
    }
    return ray.remote(Scheduler).options(**options, max_restarts=-1).remote()
