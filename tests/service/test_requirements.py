"""What a cluster lacks is said before anything is queued; also of one that grows."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.service.conftest import ServiceCluster, write_job


@pytest.mark.slow
def test_what_an_autoscaler_may_add_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own autoscaler, over nodes that exist in name alone."""
    monkeypatch.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
    kinds = {
        "head": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 2, "GPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 3},
        "cpu": {"resources": {"CPU": 4}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    }
    config = {
        "cluster_name": "grows",
        "max_workers": 3,
        "upscaling_speed": 20,
        "idle_timeout_minutes": 1,
        "provider": {"type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True,
                     "disable_launch_config_check": True},
        "available_node_types": kinds,
        "head_node_type": "head",
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{
            f"{what}_commands": []
            for what in ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "home").mkdir()
    cluster = ServiceCluster(tmp_path / "home", f"--autoscaling-config={tmp_path / 'config.json'}")
    try:
        end = time.monotonic() + 60
        while True:  # its first report comes some seconds after it
            refused = cluster.apportion("submit", write_job(tmp_path, workers={"count": 8, "gpus": 1}), check=False)
            assert refused.returncode == 1
            if "its autoscaler" in refused.stderr:
                break
            assert time.monotonic() < end, refused.stderr
        assert "8 workers need 8 CPUs, the cluster has 1; 8 GPUs, the cluster has 0" in refused.stderr
        assert "its autoscaler can bring it to 9 CPUs, 6 GPUs" in refused.stderr
        assert cluster.apportion("status").stdout == "no jobs\n"
    finally:
        cluster.close()
