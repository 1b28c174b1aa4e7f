"""`apportion prune`, killed at any moment: the same command goes on to the same model."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from apportion.evaluators.workloads.workload import model_fingerprint
from tests.search.test_netadapt import CONTENT
from tests.search.test_schedules import CHANNELS, MASKS, early, loaded, lottery

_LONGEST = 120.0
"""Seconds of a command."""


def command(folder: Path, out: str) -> subprocess.Popen[bytes]:
    run = [sys.executable, "-m", "apportion.search.cli.main", "prune", "job.yaml", "-o", out]
    return subprocess.Popen(run, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(folder: Path, out: str) -> tuple[str, Any]:
    """The model and the record of a command that comes to its end."""
    process = command(folder, out)
    _, errors = process.communicate(timeout=_LONGEST)
    assert process.returncode == 0, errors.decode()
    record = json.loads((folder / out / "schedule.json").read_text())
    assert not list((folder / out).rglob(".*"))
    return model_fingerprint(loaded(folder / out)), record


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["agp", "regrow", "lottery", "netadapt"])
def test_killed_anywhere_it_ends_with_the_same_model(tmp_path: Path, kind: str) -> None:
    content: dict[str, Any] = {"agp": CHANNELS, "netadapt": CONTENT}.get(kind, MASKS)
    if kind == "regrow":
        content = {**content, "schedule": {**content["schedule"], "regrow": True}}
    for name in ("whole", "parts"):
        folder = tmp_path / name
        folder.mkdir()
        own = content
        if kind == "lottery":
            own = lottery(CHANNELS, early(tmp_path / "early.safetensors"))
        (folder / "job.yaml").write_text(yaml.safe_dump(own))
    began = time.monotonic()
    whole = finished(tmp_path / "whole", "out")
    took = time.monotonic() - began
    rng = np.random.default_rng(0)
    for delay in sorted(rng.uniform(0.3, 0.9, 6)):
        process = command(tmp_path / "parts", "out")
        time.sleep(delay * took)
        process.kill()
        process.wait()
    model, record = finished(tmp_path / "parts", "out")
    assert model == whole[0]
    # The keys name the folders of the two jobs.
    for own in (record, whole[1]):
        own.pop("key")
        for step in own["steps"]:
            step.pop("run", None)
    assert record == whole[1]
