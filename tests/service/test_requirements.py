"""What KubeRay's autoscaler may add is found on the head, and asked for with its certificate."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from apportion.compressors.errors import ConfigurationError
from apportion.evaluators.cluster import room
from apportion.search.service import local, requirements
from apportion.search.service.client import Service
from tests.needs import missing
from tests.service.conftest import write_job

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
    found = requirements._limits(run)
    assert found is not None
    assert room._most(found, {"GPU": 1}) == gpus > 0
    assert room._most(found, {"CPU": 1}) > 0
    assert room._most(found, {"CPU": 1, "a100": 1}) == 0
    del kubernetes["RAY_CLUSTER_NAME"]
    assert requirements._limits(run) is None


def test_more_workers_than_this_machine_has_are_refused_before_a_ray_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    job = write_job(tmp_path, workers={"count": 4096})
    with pytest.raises(ConfigurationError, match="4096 with 1 CPU each: .* no autoscaler"):
        Service().submit(job)
    assert local.running() is None
    assert not (tmp_path / "data").exists()
