"""A folder in which everything is right: jobs with a small model and on a table, a finished
database, a run store, a profile. Malformed inputs are copies of it with one thing spoiled."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from apportion.search.cli.main import main

_FIXTURE = Path(__file__).parents[1] / "fixtures" / "v0_1_0"
LEVELS = ["dense", "unstr-0.75", "2:4", "w4a8"]
JOB: dict[str, Any] = {
    "workload": {
        "model": "digits_resnet",
        "weights": "model.safetensors",
        "data": {
            "kind": "npz",
            "calibration": "calibration.npz",
            "test": "test.npz",
            "mean": [0.5],
            "std": [0.5],
        },
        "batch_size": 64,
    },
    "database": {"path": "database", "levels": LEVELS},
    "budgets": {"flops": 0.5},
    "search": {"algorithms": ["random"], "evaluations": 3, "seeds": [0]},
}
TABLE = (
    "base\n1.0\nprunable\n0.8\nconv1\n0.3 0.0000\n0.2 0.5000\n0.1 0.9000\nfc\n0.5 0.0000\n"
    "0.1 0.9000\n"
)
TABLE_JOB: dict[str, Any] = {
    "workload": {"table": "table.txt"},
    "budgets": {"speedup": "2x"},
    "search": {"algorithms": ["random"], "evaluations": 3},
}


def make_whole(folder: Path) -> str:
    """Fill the folder. Returns the id of the run in its store `runs.sqlite`."""
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "calibration.npz", "test.npz"):
        shutil.copy(_FIXTURE / name, folder / name)
    write(folder, JOB)
    write(folder, TABLE_JOB, "table.yaml")
    (folder / "table.txt").write_text(TABLE)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        if main(["search", str(folder / "job.yaml"), "--json"]):
            raise RuntimeError("the whole folder's own search failed")
    with (
        contextlib.closing(sqlite3.connect(folder / "apportion.sqlite")) as store,
        contextlib.closing(sqlite3.connect(folder / "runs.sqlite")) as copy,
    ):
        store.backup(copy)  # what is still in the write-ahead log too
    for path in folder.glob("apportion.sqlite*"):
        path.unlink()
    manifest = json.loads((folder / "database" / "manifest.json").read_text())
    profile = {layer["record"]["name"]: "dense" for layer in manifest["layers"]}
    (folder / "profile.json").write_text(json.dumps(profile))
    return str(json.loads(out.getvalue())["league"][0]["run"])


def write(folder: Path, content: Any, name: str = "job.yaml") -> None:
    (folder / name).write_text(yaml.safe_dump(content))


def changed(*keys: str, to: Any, name: str = "job.yaml") -> Callable[[Path], None]:
    """Writes the job with the value at `keys` changed, in which FOLDER stands for the folder;
    sections on the way are made."""

    def prepare(folder: Path) -> None:
        content = json.loads(json.dumps(TABLE_JOB if name == "table.yaml" else JOB))
        inner = content
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = to.replace("FOLDER", str(folder)) if isinstance(to, str) else to
        write(folder, content, name)

    return prepare


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Writes a file."""

    def prepare(folder: Path) -> None:
        data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return prepare


def both(*steps: Callable[[Path], object]) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        for step in steps:
            step(folder)

    return prepare
