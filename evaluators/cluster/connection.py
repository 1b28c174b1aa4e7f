"""Connecting to Ray: the cluster that RAY_ADDRESS names, or one on this machine that is started and
stopped for the user."""

from __future__ import annotations

import signal
import threading
from typing import Any

from apportion.compressors.errors import ConfigurationError
from apportion.evaluators.cluster.address import cluster_address


class Connection:
    """Ray from `open` to `close`: the cluster that RAY_ADDRESS names, or one on this machine with
    room for `cpus` and `gpus`, which is stopped at the end. Where this process is connected
    already, that is used, and left as it is."""

    def __init__(self, cpus: float, gpus: float) -> None:
        self._cpus, self._gpus = cpus, gpus
        self._started = False

    def open(self) -> Any:
        """The module ray. Raises ConfigurationError without Ray."""
        ray = import_ray()
        if not ray.is_initialized():
            self._started = True
            _start(ray, self._cpus, self._gpus)
        return ray

    def close(self) -> None:
        if self._started:
            import_ray().shutdown()
            self._started = False


def import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigurationError(
            "workers.count is above 0, which needs Ray: install apportion[ray], or set "
            "workers.count to 0"
        ) from error
    return ray


def start_ray(ray: Any, **options: Any) -> Any:
    """ray.init, which leaves the caller's way of ending as it is: Ray has a handler of its own for
    SIGTERM, in which a run would end as failed."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return ray.init(**{"logging_level": "warning", "log_to_driver": False} | options)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _start(ray: Any, cpus: float, gpus: float) -> None:
    if (address := cluster_address()) is not None:
        try:
            start_ray(ray, address=address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigurationError(f"no Ray cluster answers at {address}: {reason}") from error
        return
    start_ray(
        ray,
        address="local",  # and not a cluster that somebody else started on this machine
        num_cpus=max(1, int(-(-cpus // 1))),
        num_gpus=int(-(-gpus // 1)) or None,
        object_store_memory=512 << 20,  # the workload's data and the model, once
        include_dashboard=False,
    )
