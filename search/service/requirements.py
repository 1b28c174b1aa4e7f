"""Whether a cluster has what a job needs, before anything is queued."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apportion.compressors.errors import ConfigurationError
from apportion.evaluators.cluster.connection import label
from apportion.search.jobs.job import AnyJob, Job
from apportion.search.service.head import limits


def check_requirements(
    job: AnyJob, client: Any, address: str, run: Callable[[str], tuple[str, str]]
) -> None:
    """Raises ConfigurationError where the job's workers fit neither the cluster as it is, nor what
    its autoscaler may make of it. `run` runs a command on the head."""
    if not isinstance(job, Job):
        return
    workers = job.workers
    count = max(1, workers.count if workers.at_least is None else workers.at_least)
    there = _resources(address)
    each = {"CPU": workers.cpus, "GPU": workers.gpus, **workers.resources}
    lacking = {name: amount for name, amount in each.items() if count * amount > there.get(name, 0)}
    if not lacking:
        return
    needs = [
        f"{count * amount:g} {label(name)}, the cluster has {there.get(name, 0):g}"
        for name, amount in lacking.items()
    ]
    if not _grows(client):
        reason = "no autoscaler adds nodes to it"
    else:
        most = _most(run, list(lacking))
        if all(count * amount <= most.get(name, float("inf")) for name, amount in lacking.items()):
            return
        reason = "its autoscaler can bring it to " + ", ".join(
            f"{amount:g} {label(name)}" for name, amount in most.items()
        )
    raise ConfigurationError(
        f"workers: {count} workers need {'; '.join(needs)}; {reason} (workers.at_least: fewer to "
        "begin with)"
    )


def _resources(address: str) -> dict[str, float]:
    """Of all nodes that are alive."""
    from ray.util.state import list_nodes

    total: dict[str, float] = {}
    for node in list_nodes(
        address=address, filters=[("state", "=", "ALIVE")], raise_on_missing_output=False
    ):
        for name, amount in (node.resources_total or {}).items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _grows(client: Any) -> bool:
    """Whether an autoscaler adds nodes to the cluster. One that only watches calls each node's type
    after the node."""
    answer = client._do_request("GET", "/api/cluster_status")
    status = answer.json()["data"].get("clusterStatus") or {} if answer.ok else {}
    types = ((status.get("autoscalerReport") or {}).get("nodeTypeMapping") or {}).items()
    return any(name != f"node_{node}" for node, name in types)


def _most(run: Callable[[str], tuple[str, str]], names: list[str]) -> dict[str, float]:
    """How much of each resource the cluster may have in the end; none where that cannot be found
    out. Ray's dashboard does not say, so that the autoscaler's configuration is looked at, from the
    head (`limits`)."""
    script = base64.b64encode(Path(limits.__file__).read_bytes()).decode()
    _, text = run(f'"$RAY_PYTHON" -c "import base64; exec(base64.b64decode(\'{script}\'))"')
    told = [line.partition(limits.MARK)[2] for line in text.splitlines() if limits.MARK in line]
    if not told:
        return {}
    config = json.loads(told[-1])
    most = {}
    for name in names:
        most[name] = sum(float(own.get(name, 0)) for head, _, own in config["kinds"] if head)
        left = config["most"] if config["most"] is not None else float("inf")
        for own, number in sorted(
            ((float(own.get(name, 0)), n) for head, n, own in config["kinds"] if not head),
            reverse=True,
        ):
            taken = min(left, number)
            most[name] += taken * own
            left -= taken
    return most
