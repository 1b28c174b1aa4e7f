"""Whether a cluster has what a job needs, before anything is queued."""

from __future__ import annotations

from typing import Any

from compressors.errors import ConfigurationError
from db.cluster import label
from search.job import AnyJob, Job


def check_requirements(job: AnyJob, client: Any, address: str) -> None:
    """Raises ConfigurationError where the job's workers do not fit the cluster as it is, and nothing adds nodes to it."""
    if not isinstance(job, Job):
        return
    workers = job.workers
    count = max(1, workers.count if workers.at_least is None else workers.at_least)
    there = _resources(address)
    each = {"CPU": workers.cpus, "GPU": workers.gpus, **workers.resources}
    missing = [
        f"{count * amount:g} {label(name)}, the cluster has {there.get(name, 0):g}"
        for name, amount in each.items()
        if count * amount > there.get(name, 0)
    ]
    if missing and not _grows(client):
        raise ConfigurationError(
            f"workers: {count} workers need {'; '.join(missing)}; no autoscaler adds nodes to it "
            "(workers.at_least: fewer to begin with)"
        )


def _resources(address: str) -> dict[str, float]:
    """Of all nodes that are alive."""
    from ray.util.state import list_nodes

    total: dict[str, float] = {}
    for node in list_nodes(address=address, filters=[("state", "=", "ALIVE")], raise_on_missing_output=False):
        for name, amount in (node.resources_total or {}).items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _grows(client: Any) -> bool:
    """Whether an autoscaler adds nodes to the cluster. One that only watches calls each node's type after the node."""
    answer = client._do_request("GET", "/api/cluster_status")
    status = answer.json()["data"].get("clusterStatus") or {} if answer.ok else {}
    types = ((status.get("autoscalerReport") or {}).get("nodeTypeMapping") or {}).items()
    return any(name != f"node_{node}" for node, name in types)
