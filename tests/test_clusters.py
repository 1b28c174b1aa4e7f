"""The files that describe clusters are what Ray and Kubernetes take."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
LAUNCHER = [ROOT / "ray_cluster.yaml", ROOT / "examples/clusters/onprem.yaml"]
KUBERAY = sorted((ROOT / "examples/clusters").glob("ray*.yaml"))


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_rays_own_check_takes_the_launcher_files(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    util = pytest.importorskip(
        "ray.autoscaler._private.util", reason="apportion[ray] is not installed"
    )
    monkeypatch.chdir(ROOT)  # file_mounts are relative to where `ray up` is called
    config = yaml.safe_load(path.read_text())
    util.validate_config(util.prepare_config(config))
    with pytest.raises(jsonschema.ValidationError):
        util.validate_config(util.prepare_config(config | {"max_wrokers": 1}))


def test_the_cluster_grows_from_none_to_gpu_nodes_and_its_head_has_no_gpu() -> None:
    config = yaml.safe_load(LAUNCHER[0].read_text())
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert (
        types["gpu_worker"]["min_workers"]
        == 0
        < types["gpu_worker"]["max_workers"]
        == config["max_workers"]
    )
    assert types["gpu_worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_ray_knows_the_options_that_nodes_start_it_with(path: Path) -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", reason="apportion[ray] is not installed")
    config = yaml.safe_load(path.read_text())
    for kind in ("head_start_ray_commands", "worker_start_ray_commands"):
        parts = [
            part
            for command in config[kind]
            for part in re.split(r";|&&", command)
            if "ray start" in part
        ]
        assert len(parts) == 1
        arguments = shlex.split(parts[0].partition("ray start")[2])
        assert ("--head" in arguments) == (kind == "head_start_ray_commands")
        scripts.start.make_context("start", arguments)  # raises for an option that it does not have


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_the_operators_definitions_take_the_manifests(path: Path) -> None:
    schemas: dict[str, Any] = json.loads((ROOT / "tests/data/kuberay.json").read_text())
    manifest = yaml.safe_load(path.read_text())
    jsonschema.validate(manifest, schemas[manifest["kind"]])
    manifest["spec"]["entrypont"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="entrypont"):
        jsonschema.validate(manifest, schemas[manifest["kind"]])


def test_the_jobs_entrypoint_is_a_driver_that_can_be_called() -> None:
    entrypoint = yaml.safe_load((ROOT / "examples/clusters/rayjob.yaml").read_text())["spec"][
        "entrypoint"
    ]
    arguments = entrypoint.partition("-m ")[2].split()
    assert importlib.util.find_spec(arguments[0]) is not None
    assert arguments[0].startswith("apportion.")
    assert {"--storage", "--job"} <= set(arguments)
