"""What the run store takes: milliseconds to append a trial, and seconds to list the runs of a store
with many trials.

python benchmarks/store.py [--trials 1000000] [--runs 1000] [--url postgresql://...]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import sqlalchemy as sa

from apportion.db.runs.rows import to_digest
from apportion.db.runs.schema import RUNS, TRIALS
from apportion.db.runs.store import Run, RunStore, StoredTrial

LAYERS = 54


def fill(store: RunStore, trials: int, runs: int) -> None:
    """`trials` in equal shares among `runs`, as ResNet-50's candidates: written in bulk, the counts
    as `append` keeps them."""
    store.add_job("bench", {})
    each = trials // runs
    for number in range(runs):
        store.add_run(Run(f"ga-s{number}", "bench", "ga", {}, number, float(each)))
        rows = [
            {
                "run": f"ga-s{number}",
                "number": i,
                "problem": "p",
                "candidate": key(number * each + i),
                "digest": to_digest(key(number * each + i)),
                "fidelity": 1.0,
            }
            | {"fitness": 1.0 / (1 + i), "evaluated": True, "seconds": 0.1}
            for i in range(each)
        ]
        with store._database._engine.begin() as connection:
            connection.execute(TRIALS.insert(), rows)
            counts = {"told": each, "scored": each, "asked": float(each), "best": 1.0 / each}
            connection.execute(sa.update(RUNS).where(RUNS.c.id == f"ga-s{number}").values(**counts))


def candidate(number: int) -> tuple[int, ...]:
    """A different one for every number."""
    return tuple(number // 45 ** (layer % 5) % 45 for layer in range(LAYERS))


def key(number: int) -> str:
    return ",".join(map(str, candidate(number)))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--appended", type=int, default=1000)
    parser.add_argument("--url", help="of an empty database; default: SQLite in a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(options.url or f"sqlite:///{folder}/runs.sqlite")
        fill(store, options.trials, options.runs)
        store.add_run(Run("appended", "bench", "ga", {}, 0, 1.0))

        def append(number: int) -> Callable[[], None]:
            trial = StoredTrial(candidate(options.trials + number), 1.0, 1.0, True, 0.1)
            return lambda: store.append("appended", "p", number, trial)

        appended = sorted(1e3 * seconds(append(number)) for number in range(options.appended))
        print(f"append a trial, {options.trials} there: median {statistics.median(appended):.3f} "
              "ms, "
              f"95 % below {appended[int(0.95 * len(appended))]:.3f} ms")  # fmt: skip
        listed = [seconds(store.runs) for _ in range(7)]
        print(f"list {options.runs + 1} runs: median {statistics.median(listed):.4f} s")
        asked = [(candidate(7919 * i), 1.0) for i in range(100)]
        looked = [1e3 * seconds(lambda: store.known_scores("p", asked)) for _ in range(7)]
        print(f"look up 100 candidates: median {statistics.median(looked):.3f} ms")
        store.close()


if __name__ == "__main__":
    main()
