"""Clusters that grow from nothing, by Ray's own autoscaler over nodes that it starts on this
machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.service.conftest import ServiceCluster, free_port, write_job

pytestmark = pytest.mark.slow


def autoscaler(folder: Path, port: int, second: bool) -> Path:
    """The configuration of the first or the `second` one, for the head at `port`: it has no CPUs,
    and gets up to two nodes of two, which go when they are idle for six seconds."""
    commands = ["initialization", "setup", "head_setup", "worker_setup"]
    commands += ["head_start_ray", "worker_start_ray"]
    provider = {
        # By its class: the second one looks for a file that Ray's packages lack otherwise.
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"127.0.0.1:{port}",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 2, "object_store_memory": 100 << 20},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    }
    content = {
        "cluster_name": "grows",
        "max_workers": 2,
        "upscaling_speed": 20,
        "idle_timeout_minutes": 0.1,
        "provider": provider | ({"launch_multiple": True, "head_node_id": HEAD} if second else {}),
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{f"{name}_commands": [] for name in commands},
    }
    path = folder / "autoscaler.json"
    path.write_text(json.dumps(content))
    return path


HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""What Ray's provider of pretended nodes calls the head."""


@pytest.fixture(params=["first", "second"])
def growing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceCluster]:
    """With both of Ray's autoscalers: KubeRay takes the second one."""
    second = request.param == "second"
    (tmp_path / "home").mkdir()
    variables = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    if second:
        variables |= {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD}
        variables |= {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
    port = free_port()
    options = [f"--autoscaling-config={autoscaler(tmp_path, port, second)}", "--num-cpus=0"]
    cluster = ServiceCluster(tmp_path / "home", *options, environment=variables, port=port)
    try:
        yield cluster
    finally:
        cluster.close()


def until(what: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.5)


def test_nodes_come_for_jobs_and_go_after_them(growing: ServiceCluster, tmp_path: Path) -> None:
    refused = growing.apportion("submit", write_job(tmp_path, workers={"count": 5}), check=False)
    assert refused.returncode == 1
    assert "5 with 1 CPU each: the cluster has room for 0" in refused.stderr
    assert "its autoscaler can make room for 4" in refused.stderr
    assert growing.apportion("status").stdout == "no jobs\n"
    assert growing.alive() == 1
    # Both nodes come at once: on one machine, one that starts late takes away what the workers of
    # the earlier one have unpacked.
    jobs = [
        growing.submit(
            write_job(tmp_path, workers={"count": count, "at_least": 1}, budgets={"flops": flops})
        )
        for count, flops in ((4, 0.25), (2, 0.5))
    ]
    until(lambda: growing.alive() == 3, 60)
    for job in jobs:
        growing.wait(job, "finished", seconds=240)
    until(lambda: growing.alive() == 1, 90)
