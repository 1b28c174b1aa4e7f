"""What a cluster's autoscaler may make of it, as its head knows: Ray's dashboard does not say.

The service sends this file's text to the head, where it runs by itself (no other module of
apportion is there yet) and prints one line: MARK, and what `limits` gives, as JSON."""

from __future__ import annotations

import glob
import json
import os
from typing import Any

MARK = "apportion-limits "
_NAMESPACE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"


def launched(address: str | None) -> dict[str, Any] | None:
    """What Ray's cluster launcher started the autoscaler on this machine with: that of the cluster
    at `address`, where several heads share the machine."""
    import yaml

    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as line:
                arguments = line.read().decode(errors="replace").split("\0")
        except OSError:
            continue  # the process has ended
        given = dict(a.split("=", 1) for a in arguments if a.startswith("--") and "=" in a)
        file = given.get("--autoscaling-config")
        if file is None or not any(a.endswith("monitor.py") for a in arguments):
            continue
        if address is None or _port(given.get("--gcs-address", "")) == _port(address):
            with open(file) as content:
                return dict(yaml.safe_load(content))
    return None


def _port(address: str) -> str:
    """A head may be called by several names."""
    return address.rpartition(":")[2]


def kuberay() -> dict[str, Any] | None:
    """What KubeRay's autoscaler takes from the RayCluster that this pod is the head of, by Ray's
    own reading of it. The head's service account may read that where the cluster has an
    autoscaler."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    if name is None or "KUBERNETES_SERVICE_HOST" not in os.environ:
        return None
    from ray.autoscaler._private.kuberay import autoscaling_config

    autoscaling_config.MAX_RAYCLUSTER_FETCH_TRIES = 1  # a user waits for the answer
    namespace = os.environ.get("RAY_CLUSTER_NAMESPACE")
    if namespace is None:
        with open(_NAMESPACE) as file:
            namespace = file.read().strip()
    return dict(autoscaling_config.AutoscalingConfigProducer(name, namespace)())


def limits(address: str | None) -> dict[str, Any] | None:
    """Of the cluster at `address`, whose head runs here (None: the only one): {"most": nodes beside
    the head in all, or None, "kinds": [[whether it is the head's, most nodes, resources], ...]}, or
    None where no autoscaler is found. Node types alone are told: the rest of an autoscaler's
    configuration may hold secrets."""
    config = launched(address) or kuberay()
    if config is None:
        return None
    most = config.get("max_workers")
    kinds = [
        (
            name == config.get("head_node_type"),
            kind.get("max_workers", most or 0),
            kind.get("resources") or {},
        )
        for name, kind in config["available_node_types"].items()
    ]
    return {"most": most, "kinds": kinds}


if __name__ == "__main__":
    print(MARK + json.dumps(limits(os.environ.get("RAY_ADDRESS"))))
