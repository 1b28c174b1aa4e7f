"""Connecting to Ray: the cluster that RAY_ADDRESS names, or one on this machine that is started and stopped for the user."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from compressors.errors import ConfigurationError
from db.shares import Share


class Session:
    """Connected from now until `close`, which stops what this session started, and only that. Raises ConfigurationError
    without Ray, or where the cluster has less than `at_least` workers need (default: all of `count`). `share.count()` says how
    many of them the job may have now."""

    def __init__(
        self,
        count: int,
        cpus: float,
        gpus: float,
        at_least: int | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        self.ray = import_ray()
        self._started = not self.ray.is_initialized()
        try:
            if self._started:
                _start(self.ray, count * cpus, count * gpus)
            _check_resources(self.ray, count if at_least is None else at_least, {"CPU": cpus, "GPU": gpus, **(resources or {})})
            self.share = Share(self.ray, count, cpus, gpus)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._started:
            self.ray.shutdown()
            self._started = False


def import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigurationError(
            "workers.count is above 0, which needs Ray: install apportion[ray], or set workers.count to 0"
        ) from error
    return ray


def _start(ray: Any, cpus: float, gpus: float) -> None:
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address="auto", logging_level="warning", log_to_driver=False)
        return
    ray.init(
        address="local",  # and not a cluster that somebody else started on this machine
        num_cpus=max(1, int(-(-cpus // 1))),
        num_gpus=int(-(-gpus // 1)) or None,
        object_store_memory=512 << 20,  # the workload's images and the model, once
        include_dashboard=False,
        logging_level="warning",
        log_to_driver=False,
    )


def _check_resources(ray: Any, count: int, each: Mapping[str, float]) -> None:
    there = ray.cluster_resources()
    for name, amount in each.items():
        if count * amount > there.get(name, 0):
            raise ConfigurationError(
                f"workers: {count} workers need {count * amount:g} {label(name)}, the cluster has {there.get(name, 0):g}"
            )


def label(resource: str) -> str:
    """A resource as messages call it."""
    return f"{resource}s" if resource in ("CPU", "GPU") else resource
