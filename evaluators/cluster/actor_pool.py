"""A job's Ray actors: made when they are first needed, and kept from the build of the database to
the last candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from apportion.evaluators.cluster.connection import Connection
from apportion.evaluators.cluster.memory import Place, place
from apportion.evaluators.cluster.room import cluster_room
from apportion.evaluators.cluster.scheduler import Quota


class ActorPool(AbstractContextManager["ActorPool"]):
    """Up to `count` actors with the resources `each` ("CPU", "GPU", and custom ones by name);
    `share.count()` says how many of them the job may have now. An actor's `apply(function,
    *arguments)` gives function(state, *arguments), `state` being a dictionary of its own. Leaving
    the context stops them, and Ray where it was started for them. Raises ConfigurationError without
    Ray, or where the cluster will never have room for `at_least` (default: all)."""

    def __init__(self, count: int, each: Mapping[str, float], at_least: int | None = None) -> None:
        custom = dict(each)
        cpus, gpus = custom.pop("CPU"), custom.pop("GPU", 0)
        self._connection = Connection(count * cpus, count * gpus)
        try:
            self.ray = self._connection.open()
            cluster_room(self.ray).check(count if at_least is None else at_least, each)
            self.share = Quota(self.ray, count, each)
        except BaseException:
            self._connection.close()
            raise
        self.count, self.gpus, self.threads = count, gpus, max(1, int(cpus))
        self._make = self.ray.remote(
            num_cpus=cpus, num_gpus=gpus, resources=custom, max_restarts=0
        )(PoolActor)
        self._idle: list[Any] = []
        self._taken = 0

    def acquire(self) -> tuple[Any, bool]:
        """An idle actor and True, or a new one and False, which the cluster may not have room for
        yet. A request to an actor that is there has to be answered in time; one to a new actor may
        wait for as long as the cluster is full."""
        self._taken += 1
        return (self._idle.pop(), True) if self._idle else (self._make.remote(self.threads), False)

    def release(self, actor: Any) -> None:
        """It is idle. It is stopped where the job's share of the cluster has shrunk."""
        if self._taken + len(self._idle) > self.share.count():
            self.stop(actor)
            return
        self._taken -= 1
        self._idle.append(actor)

    def stop(self, actor: Any) -> None:
        """One that was taken, whatever it does."""
        self._taken -= 1
        self.ray.kill(actor)

    def close(self) -> None:
        for actor in self._idle:
            self.ray.kill(actor)
        self._idle = []
        self._connection.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def answer(_state: dict[str, Any]) -> Place:
    """Tells that an actor is there, and where."""
    return place()


class PoolActor:
    """Calls functions; by its name `ray list actors` shows the workers of jobs."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._state: dict[str, Any] = {}

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self._state, *arguments)
