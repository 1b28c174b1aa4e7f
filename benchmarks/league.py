"""Every algorithm on the published latency tables, where the optimum is proven: how much of the gap
from the uniform profile to the optimum each closes from a cold start, whether it beats random
search, and what asking and telling costs.

    python benchmarks/league.py --timings PATH/TO/timings [--evaluations 2000] [--seeds 10]
        [--algorithms ...]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from scipy.stats import wilcoxon

from apportion.search.algorithms.base import Trial
from apportion.search.algorithms.registry import create
from apportion.search.jobs.job import TableJob
from apportion.search.runs.table_problem import prepare_table
from apportion.search.space.additive import optimum
from apportion.search.space.repair import uniform
from apportion.search.space.space import SearchSpace

_PROBLEMS = {
    "rn50 2x": ("rn50_unstr.txt", {"speedup": "2x"}, None),
    "rn50 3x": ("rn50_unstr.txt", {"speedup": "3x"}, None),
    "rn18 3x": ("rn18_unstr.txt", {"speedup": "3x"}, None),
    "rn50 3x, params 0.12": (
        "rn50_unstr.txt",
        {"speedup": "3x", "params": 0.12},
        "torchvision:resnet50",
    ),
}
_METAHEURISTICS = ("ga", "pso", "abc", "aco", "evopress", "anneal", "local", "nsga2")


def space_of(options: argparse.Namespace, name: str) -> SearchSpace:
    file, budgets, model = _PROBLEMS[name]
    workload = {"table": str(options.timings / file), "model": model}
    return prepare_table(TableJob.model_validate({"workload": workload, "budgets": budgets})).space


def drive(name: str, space: SearchSpace, seed: int, evaluations: int) -> tuple[float, float]:
    """Best additive error from a cold start, and the seconds that the algorithm itself took per
    candidate."""
    started = time.perf_counter()
    algorithm = create(name, space, np.random.default_rng(seed), evaluations, {"cold": True})
    inside = time.perf_counter() - started
    best, spent, candidates = np.inf, 0.0, 0
    while spent < evaluations:
        started = time.perf_counter()
        asked = algorithm.ask()
        inside += time.perf_counter() - started
        if not asked:
            break
        told = [Trial(t.candidate, t.fidelity, space.error(t.candidate)) for t in asked]
        assert all(space.feasible(t.candidate) for t in asked)
        for trial in told:
            spent += trial.fidelity
            if trial.fidelity == 1.0 and spent <= evaluations:
                best = min(best, trial.fitness or 0.0)
        candidates += len(told)
        started = time.perf_counter()
        algorithm.tell(told)
        inside += time.perf_counter() - started
    return best, inside / candidates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--timings", type=Path, required=True)
    parser.add_argument("--evaluations", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--problems", nargs="+", choices=_PROBLEMS, default=list(_PROBLEMS))
    parser.add_argument("--algorithms", nargs="+", default=list(_METAHEURISTICS))
    options = parser.parse_args()
    for problem in options.problems:
        space = space_of(options, problem)
        best, start = space.error(optimum(space)), space.error(uniform(space))
        print(
            f"\n{problem}: uniform {start:.5f}, proven optimum {best:.5f}; gap closed in %, over "
            f"{options.seeds} seeds"
        )
        print(
            f"{'algorithm':10} {'median':>8} {'least':>8} {'p against random':>17} "
            f"{'ms per candidate':>17}"
        )
        finals: dict[str, list[float]] = {}
        for name in ["random", *(a for a in options.algorithms if a != "random")]:
            runs = [drive(name, space, seed, options.evaluations) for seed in range(options.seeds)]
            finals[name] = [found for found, _ in runs]
            closed = [100 * (start - found) / (start - best) for found in finals[name]]
            p = 1.0
            if name != "random" and any(
                a != b for a, b in zip(finals[name], finals["random"], strict=True)
            ):
                p = float(wilcoxon(finals[name], finals["random"], alternative="less").pvalue)
            cost = 1e3 * statistics.median(seconds for _, seconds in runs)
            print(
                f"{name:10} {statistics.median(closed):8.2f} {min(closed):8.2f} {p:17.2g} "
                f"{cost:17.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
