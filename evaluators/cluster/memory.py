"""Workers that were killed because their node ran out of memory: by Ray, or by the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apportion.compressors.machine import memory_kills

AT_MOST = 12
"""Workers that may be killed over one piece of work: with the pauses, more than half an hour."""
ADVICE = (
    "its worker was killed for want of memory, {} times: ask for fewer workers at once "
    "(workers.count, or more workers.cpus each), smaller batches (workload.batch_size), or nodes "
    "with more memory"
)
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 300.0
_RAYS_REASON = "running low on memory"
_ANSWERS_WITHIN = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker is. `kills`: processes that the kernel of that node had killed for want of
    memory when the worker began."""

    node: str
    kills: int


def place() -> Place:
    """The calling worker's."""
    import ray

    return Place(ray.get_runtime_context().get_node_id(), memory_kills())


def was_killed(ray: Any, error: Exception, place: Place | None) -> bool:
    """Whether want of memory is why the worker at `place` was lost with `error`. Ray says so of
    those that it kills itself; for the kernel's, the node is asked."""
    if isinstance(error, ray.exceptions.OutOfMemoryError) or _RAYS_REASON in str(error):
        return True
    if place is None:
        return False
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(place.node, soft=False)
    ask = ray.remote(memory_kills).options(num_cpus=0, scheduling_strategy=there, max_retries=0)
    try:
        return bool(ray.get(ask.remote(), timeout=_ANSWERS_WITHIN) > place.kills)
    except ray.exceptions.RayError:  # the node is gone: that is why
        return False


def pause(times: int) -> float:
    """Seconds to wait before a worker that was killed so often is replaced: others need the time to
    give memory back."""
    return min(_FIRST_PAUSE * 2.0 ** (times - 1), _LONGEST_PAUSE)
