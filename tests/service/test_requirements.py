"""What a cluster lacks is said before anything is queued; also of one that grows."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from apportion.search.service import requirements
from tests.needs import missing
from tests.service.conftest import ServiceCluster, write_job

ROOT = Path(__file__).parents[2]


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An HTTPS server that answers as Kubernetes does for our own RayCluster; what a head's
    environment says of it."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    if shutil.which("openssl") is None:
        missing("no openssl is installed")
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=kubernetes",
    ]
    names = [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run([*make, *names], check=True, capture_output=True)
    manifest = yaml.safe_load((ROOT / "examples/clusters/raycluster.yaml").read_text())
    manifest["metadata"]["namespace"] = "teams"
    place = f"/apis/ray.io/v1/namespaces/teams/rayclusters/{manifest['metadata']['name']}"

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == place else 404)
            self.end_headers()
            self.wfile.write(json.dumps(manifest if self.path == place else {}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT_HTTPS": str(server.server_port),
        "RAY_CLUSTER_NAME": manifest["metadata"]["name"],
        "RAY_CLUSTER_NAMESPACE": "teams",
        "RAY_KUBERAY_CA_CERT_PATH": str(certificate),
        "RAY_KUBERAY_CLIENT_CERT_PATH": str(certificate),
        "RAY_KUBERAY_CLIENT_KEY_PATH": str(key),
    }
    server.shutdown()
    server.server_close()


def test_what_kuberays_autoscaler_may_add_is_found(kubernetes: dict[str, str]) -> None:
    def run(command: str) -> tuple[str, str]:
        environment = {
            **os.environ,
            **kubernetes,
            "RAY_PYTHON": sys.executable,
        }
        done = subprocess.run(
            command, shell=True, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return "done", done.stdout

    groups = yaml.safe_load((ROOT / "examples/clusters/raycluster.yaml").read_text())["spec"][
        "workerGroupSpecs"
    ]
    gpus = sum(
        group["maxReplicas"]
        * int(
            group["template"]["spec"]["containers"][0]["resources"]["limits"].get(
                "nvidia.com/gpu", 0
            )
        )
        for group in groups
    )
    most = requirements._most(run, ["GPU", "CPU", "a100"])
    assert most["GPU"] == gpus > 0
    assert most["CPU"] > 0
    assert most["a100"] == 0
    del kubernetes["RAY_CLUSTER_NAME"]
    assert requirements._most(run, ["GPU"]) == {}


@pytest.mark.slow
def test_what_an_autoscaler_may_add_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own autoscaler, over nodes that exist in name alone."""
    monkeypatch.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
    kinds = {
        "head": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 2, "GPU": 2},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 3,
        },
        "cpu": {"resources": {"CPU": 4}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    }
    config = {
        "cluster_name": "grows",
        "max_workers": 3,
        "upscaling_speed": 20,
        "idle_timeout_minutes": 1,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": kinds,
        "head_node_type": "head",
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{
            f"{what}_commands": []
            for what in (
                "initialization",
                "setup",
                "head_setup",
                "worker_setup",
                "head_start_ray",
                "worker_start_ray",
            )
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "home").mkdir()
    cluster = ServiceCluster(tmp_path / "home", f"--autoscaling-config={tmp_path / 'config.json'}")
    try:
        end = time.monotonic() + 60
        while True:  # its first report comes some seconds after it
            refused = cluster.apportion(
                "submit", write_job(tmp_path, workers={"count": 8, "gpus": 1}), check=False
            )
            assert refused.returncode == 1
            if "its autoscaler" in refused.stderr:
                break
            assert time.monotonic() < end, refused.stderr
        assert (
            "8 workers need 8 CPUs, the cluster has 1; 8 GPUs, the cluster has 0" in refused.stderr
        )
        assert "its autoscaler can bring it to 9 CPUs, 6 GPUs" in refused.stderr
        assert cluster.apportion("status").stdout == "no jobs\n"
    finally:
        cluster.close()
