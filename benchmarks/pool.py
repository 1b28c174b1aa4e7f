"""The Ray pool: 2 workers against 1 on a real workload, and its own overhead with 1 to 64 workers
that sleep.

    python benchmarks/pool.py [--workers 1 2 8 32 64] [--seconds 0.2] [--rounds 3]
        [--candidates 24] [--skip-real]

Real: the digits network, scored by one and by two workers of one thread each, alternating.
Sleeping: workers on fractional CPUs; efficiency is the sleep of all requests over workers x wall
time, for batches of four requests a worker."""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import ray

from apportion.evaluators.cluster.actor_pool import ActorPool
from apportion.evaluators.cluster.pool import RayPool
from apportion.evaluators.scoring.pool import Pool, Request
from apportion.evaluators.scoring.stitched import StitchedScorer
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.building import build


class Sleeper:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def score(
        self, candidate: tuple[int, ...], fidelity: float = 1.0, bound: float = math.inf
    ) -> float:
        time.sleep(self._seconds * fidelity)
        found = float(sum(candidate))
        return found if found <= bound else math.inf


class Weighed(StitchedScorer):
    """Leaves a note of what its process takes, in bytes that no other process shares."""

    folder = Path()

    def score(
        self, candidate: tuple[int, ...], fidelity: float = 1.0, bound: float = float("inf")
    ) -> float:
        found = super().score(candidate, fidelity, bound)
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        own = sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private"))
        (self.folder / str(time.time_ns())).write_text(str(own))
        return found


def timed(pool: Pool, requests: list[Request]) -> float:
    start = time.perf_counter()
    for _ in pool.evaluate(requests):
        pass
    return time.perf_counter() - start


def real(rounds: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = {
            "workload": {"data": {"kind": "digits"}},
            "database": {
                "path": f"{folder}/db",
                "levels": ["dense", "mag:unstr-0.50", "mag:unstr-0.75"],
            },
        }
        workload, database = build(parse_model_job(content))
        Weighed.folder = Path(folder)
        make = partial(Weighed, workload, database, "loss", "batch")
        rng = np.random.default_rng(0)
        requests: list[Request] = [
            (tuple(rng.integers(0, 3, 14).tolist()), 1.0) for _ in range(count)
        ]
        ray.init(
            address="local",
            num_cpus=3,
            object_store_memory=256 << 20,
            include_dashboard=False,
            log_to_driver=False,
        )
        times: list[list[float]] = [[], []]
        try:
            with ActorPool(1, {"CPU": 1}) as first, RayPool(make, first) as one:
                timed(one, requests[:2])
                with ActorPool(2, {"CPU": 1}) as second, RayPool(make, second) as two:
                    timed(two, requests[:4])
                    for _ in range(rounds):  # new ones each time: a worker remembers what it scored
                        requests = [
                            (tuple(rng.integers(0, 3, 14).tolist()), 1.0) for _ in range(count)
                        ]
                        times[0].append(timed(one, requests))
                        times[1].append(timed(two, requests))
        finally:
            ray.shutdown()
        ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
        taken = max(int(note.read_text()) for note in Path(folder).glob("1*"))
        print(
            f"{count} candidates: 1 worker {statistics.median(times[0]):.2f} s, 2 workers "
            f"{statistics.median(times[1]):.2f} s"
        )
        print(
            f"2 workers are {ratio:.2f}x as fast; a worker's own memory at most "
            f"{taken / 2**20:.0f} MiB"
        )


def sleeping(workers: list[int], seconds: float, rounds: int) -> None:
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=128 << 20,
        include_dashboard=False,
        log_to_driver=False,
    )
    print(f"{'workers':>7} {'efficiency':>10} {'wall s':>7}")
    try:
        for count in workers:
            with (
                ActorPool(count, {"CPU": 2 / 64}) as crew,
                RayPool(partial(Sleeper, seconds), crew) as pool,
            ):
                while (
                    pool.there < count
                ):  # starting processes would take the processor from the others
                    timed(pool, [((0,), 1e-3)] * count)
                requests: list[Request] = [((i,), 1.0) for i in range(4 * count)]
                wall = statistics.median(timed(pool, requests) for _ in range(rounds))
            print(f"{count:7} {4 * seconds / wall:10.3f} {wall:7.2f}", flush=True)
    finally:
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 8, 32, 64])
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--skip-real", action="store_true")
    options = parser.parse_args()
    if not options.skip_real:
        real(options.rounds, options.candidates)
    sleeping(options.workers, options.seconds, options.rounds)


if __name__ == "__main__":
    main()
