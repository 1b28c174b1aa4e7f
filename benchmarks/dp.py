"""The dynamic program against a plain numpy transcription of the published recursion (Frantar &
Alistarh 2022, algorithm 1: every level of every layer over all buckets), alternating in one
process; and both against the proven optimum.

    python benchmarks/dp.py --timings PATH/TO/timings [--repeats 20]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from apportion.search.jobs.job import TableJob
from apportion.search.runs.table_problem import prepare_table
from apportion.search.space.additive import BUCKETS, dynamic_program
from apportion.search.space.milp import milp
from apportion.search.space.space import Candidate, SearchSpace


def published(space: SearchSpace, buckets: int = BUCKETS) -> Candidate:
    """The recursion as published, costs rounded up so that the budget holds."""
    loads, limit = space.load_table[0], float(space.limits[0])
    steps = np.ceil(loads / limit * buckets - 1e-9).astype(int)
    value = np.full((len(loads) + 1, buckets + 1), np.inf)
    value[0] = 0
    chosen = np.zeros((len(loads), buckets + 1), dtype=int)
    for layer in range(len(loads)):
        for level in range(space.counts[layer]):
            step = steps[layer, level]
            if step > buckets:
                continue
            total = value[layer, : buckets + 1 - step] + space.error_table[layer, level]
            better = total < value[layer + 1, step:]
            value[layer + 1, step:][better] = total[better]
            chosen[layer, step:][better] = level
    left, candidate = buckets, []
    for layer in range(len(loads) - 1, -1, -1):
        candidate.append(int(chosen[layer, left]))
        left -= steps[layer, candidate[-1]]
    return tuple(candidate[::-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--timings", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    heads = (
        ("problem", 12),
        ("optimum", 9),
        ("published", 10),
        ("ours", 9),
        ("published ms", 13),
        ("ours ms", 8),
        ("ratio", 7),
    )
    print(" ".join(f"{head:>{width}}" for head, width in (*heads, ("milp s", 7))))
    for file in ("rn50_unstr", "rn18_unstr"):
        for speedup in ("2x", "3x"):
            workload = {"table": str(options.timings / f"{file}.txt")}
            space = prepare_table(
                TableJob.model_validate({"workload": workload, "budgets": {"speedup": speedup}})
            ).space
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(options.repeats):
                for run, own in zip(
                    (published, lambda s: dynamic_program(s, s.error_table)), times, strict=True
                ):
                    started = time.perf_counter()
                    run(space)
                    own.append(1e3 * (time.perf_counter() - started))
            started = time.perf_counter()
            proven = milp(space)
            solver = time.perf_counter() - started
            theirs, ours = map(statistics.median, times)
            assert space.feasible(published(space))
            print(
                f"{file[:4]:>5} {speedup:>6} {proven.error:9.5f} "
                f"{space.error(published(space)):10.5f} "
                f"{space.error(dynamic_program(space, space.error_table)):9.5f} {theirs:13.1f} "
                f"{ours:8.2f} "
                f"{theirs / ours:6.1f}x {solver:7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
