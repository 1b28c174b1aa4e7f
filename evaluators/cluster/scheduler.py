"""Fair shares: how many workers each job may have when several share a Ray cluster.

One detached actor on the cluster keeps the list of jobs; every job asks it for its share, which is
also its sign of life."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from apportion.evaluators.cluster.room import Resources, cluster_room, fit

JOB, PRIORITY = "APPORTION_JOB", "APPORTION_PRIORITY"
"""Environment variables that the service sets for a job's process; without the first, a job takes
what it asks for."""
_NAME, _NAMESPACE = "apportion-shares", "apportion"
_ASK_EVERY = 2.0
_GONE = 60.0
"""Seconds without a sign of life after which a job's share is the others'."""


@dataclass(slots=True)
class Demand:
    """A job that wants workers with the resources `each`. `running`: it has had one already."""

    wanted: int
    each: Resources
    priority: float
    running: bool = False
    heard: float = 0.0


def divide(demands: Sequence[Demand], nodes: Sequence[Resources]) -> list[int]:
    """Workers of each job, given in turn to the one that has least for its priority, the earlier
    one first, as long as they fit the nodes. Jobs that run keep one, so that what they hold in
    memory is not lost."""
    given = [0] * len(demands)
    # Nodes with GPUs come last: they are for workers that need some.
    left = [dict(node) for node in sorted(nodes, key=lambda node: node.get("GPU", 0.0))]

    def give(i: int) -> bool:
        one = demands[i]
        room = next((node for node in left if fit(node, one.each)), None)
        if given[i] >= one.wanted or room is None:
            return False
        for name, amount in one.each.items():
            room[name] = room.get(name, 0.0) - amount
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
    """The actor. What all jobs want together, it asks the cluster's autoscaler for: workers are
    made only where they fit, so that Ray itself sees no demand for nodes. The request is taken back
    when jobs leave, or are not heard of any more."""

    def __init__(self) -> None:
        self._demands: dict[str, Demand] = {}
        self._changes = threading.Lock()
        self._requested: list[dict[str, float]] | None = None
        threading.Thread(target=self._follow, daemon=True).start()

    def ask(
        self,
        job: str,
        wanted: int,
        each: Resources,
        priority: float,
        nodes: Sequence[Resources],
    ) -> int:
        """A job's question, which is also its sign of life.

        Args:
            job: who asks.
            wanted: workers that it would have at the most.
            each: resources of each worker.
            priority: its share beside other jobs', above 0.
            nodes: resources of the cluster's nodes.

        Returns:
            The number of workers that it may have now.
        """
        with self._changes:
            own = self._demands.setdefault(job, Demand(wanted, each, priority))
            own.wanted, own.each, own.priority = wanted, each, priority
            own.heard = time.monotonic()
            self._forget()
            share = divide(list(self._demands.values()), nodes)[list(self._demands).index(job)]
            own.running = own.running or share > 0
        return share

    def leave(self, job: str) -> None:
        with self._changes:
            self._demands.pop(job, None)

    def _forget(self) -> None:
        """Jobs that give no sign of life."""
        now = time.monotonic()
        for name in [name for name, one in self._demands.items() if now - one.heard > _GONE]:
            del self._demands[name]

    def _follow(self) -> None:
        from ray.autoscaler.sdk import request_resources

        while True:
            with self._changes:
                self._forget()
                wanted = [
                    {name: amount for name, amount in one.each.items() if amount}
                    for one in self._demands.values()
                    for _ in range(one.wanted)
                ]
            if wanted != self._requested:
                try:
                    request_resources(bundles=wanted)
                    self._requested = wanted
                except Exception as error:  # the head does not answer: asked again
                    print(f"the autoscaler was not asked: {error}", file=sys.stderr)
            time.sleep(_ASK_EVERY)


class Quota:
    """A job's side of it. `count()` is `wanted` where no service runs the job."""

    def __init__(self, ray: Any, wanted: int, each: Resources) -> None:
        self._ray, self._wanted, self._each = ray, wanted, dict(each)
        self._job = os.environ.get(JOB)
        self._priority = float(os.environ.get(PRIORITY, "1"))
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
            nodes = cluster_room(self._ray).nodes
            asked = actor.ask.remote(self._job, self._wanted, self._each, self._priority, nodes)
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
