"""Injects faults into real searches and prints what became of each; what is found in the end must
be what an undisturbed search finds.

    python -m tests.robustness.faults [PATTERN]      only the cells whose name it matches

Each cell starts `apportion search` (or `export`) on a folder of its own, waits for a phase, lets a
fault happen, looks at how the command ended, and gives the same command again until it is done.
Lost: trials that the undisturbed search made and this one did not. Doubled: trials that are there
twice. Equal: trials, database and exported model are the same to the bit."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from apportion.compressors.errors import ApportionError
from apportion.db.runs.sqlite import sqlite_url
from apportion.db.runs.store import RunStore

COMMAND = [sys.executable, "-m", "apportion"]
JOB: dict[str, Any] = {
    "workload": {"data": {"kind": "digits"}, "calibration_samples": 256, "batch_size": 64},
    "database": {"path": "database", "levels": ["dense", "unstr-0.50", "unstr-0.75", "2:4", "w4"]},
    "budgets": {"flops": 0.5},
    "search": {"algorithms": ["spdy", "local"], "evaluations": 40, "seeds": [0]},
}
_PATIENCE = 180.0


def layers(folder: Path) -> int:
    return len(list((folder / "database" / "layers").glob("*.safetensors")))


def trials(folder: Path) -> dict[str, list[tuple[tuple[int, ...], float]]]:
    if not (folder / "apportion.sqlite").exists():
        return {}
    try:
        store = RunStore(sqlite_url(folder / "apportion.sqlite"), reading=True)
    except ApportionError:  # it is being made
        return {}
    try:
        return {
            run.id: [(trial.candidate, trial.fitness) for trial in store.trials(run.id)]
            for run in store.runs()
        }
    except ApportionError:
        return {}
    finally:
        store.close()


def count(folder: Path) -> int:
    return sum(map(len, trials(folder).values()))


PHASES: dict[str, Callable[[Path], bool]] = {
    "starts": lambda folder: (folder / "began").exists(),
    "begins to build": lambda folder: (folder / "database").exists(),
    "builds": lambda folder: layers(folder) >= 3,
    "ends to build": lambda folder: layers(folder) >= 12,
    "searches": lambda folder: count(folder) >= 3,
    "ends to search": lambda folder: count(folder) >= 60,
    "exports": lambda folder: any(folder.glob("out/.export-*")),
}
SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
DISKS = (200, 2_000, 20_000, 60_000, 200_000)
"""Bytes at which a file cannot grow any more."""


@dataclass(frozen=True)
class Cell:
    """A fault in a phase, with so many Ray workers."""

    fault: str
    phase: str
    workers: int = 0

    @property
    def name(self) -> str:
        return f"{self.fault}, {self.phase}" + (", Ray" if self.workers else "")


def cells() -> Iterator[Cell]:
    for phase in PHASES:
        for fault in (*SIGNALS, "SIGSTOP", "two at once"):
            yield Cell(fault, phase)
    for size in DISKS:
        yield Cell(f"disk full at {size}", "starts")
    for phase in list(PHASES)[:-1]:
        for fault in SIGNALS:
            yield Cell(fault, phase, workers=2)


def start(folder: Path, phase: str, largest: int | None = None) -> subprocess.Popen[str]:
    """The command of a phase, in a session of its own."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    arguments = ["search", str(folder / "job.yaml")]
    if phase == "exports":
        run = min(trials(folder))
        store = sqlite_url(folder / "apportion.sqlite")
        arguments = ["export", run, "-o", str(folder / "out"), "--store", store]
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
        start_new_session=True,
    )


def prepare(folder: Path, cell: Cell) -> None:
    folder.mkdir()
    workers = {"count": cell.workers, "cpus": 1} if cell.workers else {"count": 0}
    (folder / "job.yaml").write_text(yaml.safe_dump({**JOB, "workers": workers}))


def inject(cell: Cell, folder: Path) -> str:
    """'' where the command ended as it should."""
    largest = int(cell.fault.rpartition(" ")[2]) if cell.fault.startswith("disk") else None
    process = start(folder, cell.phase, largest)
    if cell.phase == "starts":
        time.sleep(1.0)
        (folder / "began").touch()
    end = time.monotonic() + _PATIENCE
    reached = PHASES[cell.phase]
    while process.poll() is None and not reached(folder) and time.monotonic() < end:
        time.sleep(0.01)
    if largest is None and process.poll() is not None:
        return f"the phase was missed: {process.communicate()[1][-300:]}"
    expected = {0}
    if cell.fault in SIGNALS:
        process.send_signal(SIGNALS[cell.fault])
        expected = {-9} if cell.fault == "kill -9" else {130}
    elif cell.fault == "SIGSTOP":
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.0)
        process.send_signal(signal.SIGCONT)
    elif cell.fault == "two at once":
        second = start(folder, cell.phase)
        told = second.communicate(timeout=_PATIENCE)[1]
        if second.returncode not in (0, 1) or "Traceback" in told:
            process.kill()
            return f"the second one: {second.returncode}, {told[-300:]}"
    elif largest is not None:
        expected = {1}
    told = process.communicate(timeout=_PATIENCE)[1]
    if cell.phase == "starts" and cell.fault in SIGNALS:
        expected |= {-SIGNALS[cell.fault], 130}  # Python itself may be starting still
    elif "Traceback" in told:
        return f"a traceback: {told[-300:]}"
    if process.returncode not in expected:
        return f"status {process.returncode}: {told[-300:]}"
    return ""


def digests(folder: Path) -> dict[str, str]:
    """Of the files that must be equal."""
    files = [*folder.glob("database/**/*"), *folder.glob("out/model.*")]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file() and path.suffix == ".safetensors"
    }


def finish(folder: Path, export: bool) -> str:
    """The same command again, to its end; '' where it gets there."""
    for phase in ("searches", *(("exports",) if export else ())):
        process = start(folder, phase)
        told = process.communicate(timeout=_PATIENCE)[1]
        if process.returncode:
            return f"again: {process.returncode}, {told[-300:]}"
    return ""


def judge(cell: Cell, folder: Path, whole: Path) -> tuple[int, int, str]:
    """Lost and doubled trials, and what else is not as it should be."""
    export = cell.phase == "exports"
    if export:
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("out"))
    else:
        prepare(folder, cell)
    fault = inject(cell, folder) or finish(folder, export)
    expected, found = trials(whole), trials(folder)
    lost = doubled = 0
    for run, made in expected.items():
        again = Counter(found.get(run, []))
        lost += (Counter(made) - again).total()
        doubled += (again - Counter(made)).total()
    wanted = {
        name: digest
        for name, digest in digests(whole).items()
        if export or not name.startswith("out/")
    }
    if not fault and (found != expected or digests(folder) != wanted):
        fault = "not equal to the bit"
    left = [
        path.name
        for path in folder.rglob(".*")
        if re.search(r"\.export-|\.safetensors\.|\.json\.", path.name)
    ]
    return lost, doubled, fault or (f"leaves {', '.join(left)}" if left else "")


def main(pattern: str = "") -> int:
    """Returns how many cells are not as they should be."""
    wrong = lost = doubled = 0
    tried = [cell for cell in cells() if re.search(pattern, cell.name)]
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        prepare(whole, Cell("", ""))
        if fault := finish(whole, export=True):
            raise RuntimeError(f"undisturbed: {fault}")
        for number, cell in enumerate(tried):
            folder = Path(temporary) / f"cell {number}"
            gone, twice, fault = judge(cell, folder, whole)
            lost, doubled = lost + gone, doubled + twice
            wrong += bool(gone or twice or fault)
            print(f"{cell.name}: {gone} lost, {twice} doubled, {fault or 'equal'}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(tried)} faults: {lost} lost, {doubled} doubled, {wrong} not as they should be")
    return wrong


if __name__ == "__main__":
    os.environ.pop("APPORTION_STORE", None)
    sys.exit(min(1, main(*sys.argv[1:])))
