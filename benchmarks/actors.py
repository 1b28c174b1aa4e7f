"""What a workload costs each worker of a node: sent by Ray as it is, or packed
(evaluators/cluster/objects.py), alternating.

    python benchmarks/actors.py [--model torchvision:resnet18] [--images 1024] [--size 64]
                                [--workers 2] [--rounds 3]

Memory is the proportional set size (shared pages counted in parts) that holding the workload adds
to a worker; time is from the call until the worker has it. A ratio is that of the medians."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from apportion.evaluators.cluster.objects import pack, unpack
from apportion.evaluators.data.splits import TensorSplit
from apportion.evaluators.models.build import build_model
from apportion.evaluators.workloads.workload import Workload


@ray.remote(num_cpus=0)
class Worker:
    def __init__(self) -> None:
        self._held: Any = None
        torch.zeros(1)

    def size(self) -> int:
        """Bytes of this process, shared pages in parts."""
        lines = Path(f"/proc/{os.getpid()}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))

    def hold(self, value: Any, packed: bool) -> float:
        """Take it, and read all of it once, as scoring does."""
        self._held = unpack(value) if packed else value
        total = float(self._held.calibration.batch[0].sum())
        return total + sum(float(p.sum()) for p in self._held.model.parameters())


def measured(workload: Workload, packed: bool, workers: int) -> tuple[float, float]:
    """MiB and seconds per worker."""
    actors = [Worker.remote() for _ in range(workers)]  # type: ignore[attr-defined]
    before = ray.get([actor.size.remote() for actor in actors])
    start = time.perf_counter()
    sent = ray.put(pack(workload) if packed else workload)
    ray.get([actor.hold.remote(sent, packed) for actor in actors])
    seconds = time.perf_counter() - start
    after = ray.get([actor.size.remote() for actor in actors])
    for actor in actors:
        ray.kill(actor)
    return float(np.mean(np.subtract(after, before))) / 2**20, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="torchvision:resnet18")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(args.images, 3, args.size, args.size, generator=generator)
    data = TensorSplit(images, torch.zeros(args.images, dtype=torch.int64))
    workload = Workload(build_model(args.model), data, data, data)
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=1 << 30,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        for _ in range(args.rounds):
            for packed, rows in found.items():
                rows.append(measured(workload, packed, args.workers))
    finally:
        ray.shutdown()
    plain, shared = (
        [statistics.median(column) for column in zip(*found[packed], strict=True)]
        for packed in (False, True)
    )
    print(f"{args.model}, {args.images} images, {args.workers} workers, per worker:")
    for what, unit, i in (("memory", "MiB", 0), ("time", "s", 1)):
        one, other = plain[i], shared[i]
        ratio = f"{one / other:.2f}x"
        print(f"{what:>8} as it is {one:.2f} {unit}, packed {other:.2f} {unit}: {ratio}")


if __name__ == "__main__":
    main()
