"""A front from one run against a search of its own for every point: quality, and how many
candidates had to be scored.

    python benchmarks/front.py [--job FRONT.yaml] [--evaluations 300] [--shares 1 0.5 0.25]
        [--algorithms evopress surrogate] [--seeds 3]

Without a job: the digits network at 2, 3, 4, 6 and 8 times fewer multiply-accumulates. Separate
searches have `--evaluations` each and share nothing; fronts have a share of that at each point.
Printed are the medians over seeds of the best fitness, relative to the separate searches' median at
the point (below 1 is better), their mean over the points, and the full evaluations that were
scored, per seed."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apportion.db.runs.store import RunStore
from apportion.search.jobs.job import AnyJob
from apportion.search.jobs.job_file import parse_job, read_content
from apportion.search.jobs.titles import title
from apportion.search.runs.front import prepare_points, run_points
from apportion.search.runs.loop import RunResult
from apportion.search.runs.pipeline import run_search
from apportion.search.runs.problem import Problem

_DIGITS: dict[str, Any] = {
    "workload": {"data": {"kind": "digits"}, "calibration_samples": 512},
    "database": {"path": "databases/digits-front"},
    "budgets": {"flops": ["2x", "3x", "4x", "6x", "8x"]},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--job", type=Path)
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.25])
    parser.add_argument("--algorithms", nargs="+", default=["evopress", "surrogate"])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    content = read_content(options.job) if options.job else _DIGITS

    def job(evaluations: int) -> AnyJob:
        search = {
            "algorithms": options.algorithms,
            "evaluations": evaluations,
            "seeds": list(range(options.seeds)),
            "picks": 1,
        }
        return parse_job({**content, "search": search}, options.job or "job")

    with tempfile.TemporaryDirectory() as folder:
        points = prepare_points(job(options.evaluations))
        with points[0]:
            names = [title(point.job.budgets) for point in points]
            separate = [
                run_search(points[0].at(p.job), RunStore(f"sqlite:///{folder}/{i}.sqlite"))
                for i, p in enumerate(points)
            ]
            fronts = {}
            for share in options.shares:
                jobs = job(round(share * options.evaluations)).points()
                store = RunStore(f"sqlite:///{folder}/front-{share}.sqlite")
                fronts[share] = run_points(_points(points[0], jobs), store)
    for algorithm in options.algorithms:
        print(f"\n{algorithm}: {options.seeds} seeds; separate: {options.evaluations} each")
        print(f"{'':>16}" + "".join(f"{name:>12}" for name in names) + f"{'mean':>9}{'scored':>9}")
        base = _row("separate", algorithm, separate, None, options.seeds)
        for share, found in fronts.items():
            _row(f"front, {share:g}", algorithm, found, base, options.seeds)


def _points(first: Problem, jobs: Sequence[AnyJob]) -> list[Problem]:
    made: list[Problem] = []
    for job in jobs:
        made.append(first.at(job, [point.id for point in made]))
    return made


def _row(
    name: str,
    algorithm: str,
    found: Sequence[Sequence[RunResult]],
    base: Sequence[float] | None,
    seeds: int,
) -> list[float]:
    own = [[r for r in results if r.run.algorithm == algorithm] for results in found]
    medians = [statistics.median(r.best.fitness for r in results) for results in own]
    scored = (
        sum(t.fidelity for results in own for r in results for t in r.trials if t.evaluated) / seeds
    )
    shown = medians if base is None else [m / b for m, b in zip(medians, base, strict=True)]
    mean = "" if base is None else f"{statistics.geometric_mean(shown):.4f}"
    cells = "".join(f"{value:>12.4g}" for value in shown)
    print(f"{name:>16}{cells}{mean:>9}{scored:>9.0f}", flush=True)
    return medians


if __name__ == "__main__":
    main()
