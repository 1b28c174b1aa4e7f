"""How many workers a cluster has room for, and may have in the end: the one place that says so, for
who submits a job, for its own process, and for its actors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apportion.compressors.errors import ConfigurationError
from apportion.evaluators.cluster.limits import limits

Resources = Mapping[str, float]
_HEAD = "node:__internal_head__"
"""The resource by which Ray marks a cluster's head."""
_ANSWERS_WITHIN = 60.0
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Room:
    """`nodes`: resources of those that are there. `limits`: gives what its autoscaler may make of
    the cluster (`limits.limits`), None where it has none."""

    nodes: Sequence[Resources]
    limits: Callable[[], dict[str, Any] | None] = lambda: None

    def now(self, each: Resources) -> int:
        """Workers with `each` that the nodes have room for if nothing else ran."""
        return sum(fit(node, each) for node in self.nodes)

    def check(self, count: int, each: Resources) -> None:
        """Raises ConfigurationError where there will never be room for `count` workers with
        `each`."""
        now = self.now(each)
        if now >= count:
            return
        needs = ", ".join(_amount(name, amount) for name, amount in each.items() if amount)
        lacking = f"workers: {count} with {needs} each: the cluster has room for {now}"
        if (found := self.limits()) is None:
            reason = "no autoscaler adds nodes to it"
        elif (most := _most(found, each)) >= count:
            return
        else:
            reason = f"its autoscaler can make room for {most}"
        raise ConfigurationError(f"{lacking}, {reason} (workers.at_least: fewer to begin with)")


def cluster_room(ray: Any) -> Room:
    """Of the cluster that this process is connected to."""
    return Room([node["Resources"] for node in ray.nodes() if node["Alive"]], lambda: _limits(ray))


def _limits(ray: Any) -> dict[str, Any] | None:
    """As the head says, which the jobs' own processes run on."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    head = next((node["NodeID"] for node in nodes if _HEAD in node["Resources"]), None)
    context = ray.get_runtime_context()
    if head in (None, context.get_node_id()):
        return _found(context.gcs_address)
    there = NodeAffinitySchedulingStrategy(head, soft=False)
    ask = ray.remote(_found).options(num_cpus=0, scheduling_strategy=there)
    try:
        found: dict[str, Any] | None = ray.get(
            ask.remote(context.gcs_address), timeout=_ANSWERS_WITHIN
        )
    except ray.exceptions.RayError as error:
        raise ConfigurationError(
            f"workers: the cluster's head does not say what its autoscaler may add: {error}"
        ) from error
    return found


def _found(address: str) -> dict[str, Any] | None:
    try:
        return limits(address)
    except Exception:  # KubeRay's head may read its cluster only where that grows
        return None


def _most(limits: Mapping[str, Any], each: Resources) -> int:
    """Workers with `each` when the autoscaler has added all that it may."""
    total = sum(fit(node, each) for head, _, node in limits["kinds"] if head)
    left = float("inf") if limits["most"] is None else limits["most"]
    kinds = [(fit(node, each), number) for head, number, node in limits["kinds"] if not head]
    for workers, number in sorted(kinds, reverse=True):
        taken = min(left, number)
        total += int(taken * workers) if workers else 0
        left -= taken
    return total


def fit(node: Resources, each: Resources) -> int:
    """Workers with `each` on one node."""
    needs = [(node.get(name, 0.0), amount) for name, amount in each.items() if amount]
    return min(int(there / amount + _ROUNDING) for there, amount in needs)


def _amount(resource: str, amount: float) -> str:
    plural = "s" if resource in ("CPU", "GPU") and amount != 1 else ""
    return f"{amount:g} {resource}{plural}"
