"""Searches on few and on many layers: how much of the gap from the uniform profile to the optimum
each closes from a cold start, on problems joined and perturbed from the published latency tables.

What a search sees as additive errors: `table` what the fitness is made of; `wrong` that, with every
layer's errors a random factor off, which ranks layers wrongly; `none` the square of a level's rank,
the same for every layer; `pairs` a table that is 30 % off for each layer, with a fitness in which
neighbouring layers interact. Optima are those of the fitness's own table; with interactions the
best that thousands of paired steps find from there, so that the share may pass 100.

    python benchmarks/scaling.py --timings PATH/TO/timings [--layers 20 54 105 224] [--seeds 5]
        [--budgets 2 3] [--seen table wrong none pairs] [--algorithms ga pso abc] [--tuning]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from apportion.evaluators.costs.latency_files import read_latency
from apportion.search.algorithms.base import Trial
from apportion.search.algorithms.registry import create
from apportion.search.space.additive import solve
from apportion.search.space.moves import step
from apportion.search.space.repair import uniform
from apportion.search.space.space import Candidate, SearchSpace

_SEEN = ("table", "wrong", "none", "pairs")
_LEVELS = 42
_TUNING = 100
"""Instances from this number on are for tuning, those before for testing."""
_CLIMB = 3000

Fitness = Callable[[Candidate], float]


@cache
def _rows(folder: Path) -> tuple[np.ndarray, ...]:
    """Every layer's times by level, [levels], in units of a mean layer of its network."""
    rows: list[np.ndarray] = []
    for file in ("rn18_unstr.txt", "rn50_unstr.txt"):
        own = [np.array(list(row.values())) for row in read_latency(folder / file).seconds.values()]
        mean = sum(row[0] for row in own) / len(own)
        rows += [row / mean for row in own if len(row) == _LEVELS]
    return tuple(rows)


def joined(folder: Path, layers: int, speedup: float, instance: int) -> SearchSpace:
    """Layers drawn from the tables, each scaled, with 2 % of noise per level; errors grow as
    exp(k t), k in 2 to 6, by a factor that is a layer's own."""
    rng = np.random.default_rng([instance, layers])
    rows = _rows(folder)
    while True:
        noise = 1 + 0.02 * rng.normal(size=(layers, _LEVELS))
        drawn = np.array([rows[k] for k in rng.integers(len(rows), size=layers)])
        costs = drawn * np.exp(0.3 * rng.normal(size=(layers, 1))) * noise
        dense = 1.03 * float(costs[:, 0].sum())
        if costs.min(1).sum() < 0.85 * (dense / speedup - 0.03 / 1.03 * dense):
            break  # few layers may have drawn too many that cannot be made fast
    k = rng.uniform(2, 6, size=(layers, 1))
    growth = np.expm1(k * np.arange(_LEVELS) / (_LEVELS - 1)) / np.expm1(k)
    errors = np.exp(rng.normal(size=(layers, 1))) * growth
    return SearchSpace(
        layers=tuple(f"layer{i}" for i in range(layers)),
        levels=(tuple(map(str, range(_LEVELS))),) * layers,
        costs={"latency": tuple(costs)},
        base={"latency": dense * 0.03 / 1.03},
        dense={"latency": dense},
        budgets={"latency": dense / speedup},
        errors=tuple(errors),
    )


def problem(space: SearchSpace, kind: str, instance: int) -> tuple[SearchSpace, Fitness, float]:
    """What the search sees, the fitness, and the fitness of the optimum."""
    rng = np.random.default_rng([instance, len(space.layers), 1])
    layers = np.arange(len(space.layers))
    seen, table, coupled = space, space.error_table, np.zeros(len(layers) - 1)
    if kind == "wrong":
        off = np.exp(rng.normal(size=len(layers)))
        seen = dataclasses.replace(space, errors=tuple(space.error_table * off[:, None]))
    elif kind == "none":
        rank = space.position / (_LEVELS - 1)
        seen = dataclasses.replace(space, errors=tuple(rank**2))
    elif kind == "pairs":
        table = table * np.exp(0.3 * rng.normal(size=(len(layers), 1)))
        coupled = rng.uniform(0.2, 0.6, len(coupled)) * rng.choice([-1, 1], len(coupled))

    def fitness(candidate: Candidate) -> float:
        error = table[layers, list(candidate)]
        return float(error.sum() + coupled @ np.sqrt(error[:-1] * error[1:]))

    truth = dataclasses.replace(space, errors=tuple(table))
    best = solve(truth)
    if kind == "pairs":
        for _ in range(_CLIMB):
            best = min(step(truth, rng, best), best, key=fitness)
    return seen, fitness, fitness(best)


def drive(
    name: str, space: SearchSpace, fitness: Fitness, seed: int, evaluations: int
) -> tuple[float, float]:
    """The best fitness from a cold start, and the seconds of processor time that the algorithm
    itself took per candidate."""
    inside, best, spent, candidates = -time.process_time(), np.inf, 0.0, 0
    algorithm = create(name, space, np.random.default_rng(seed), evaluations, {"cold": True})
    asked = algorithm.ask()
    inside += time.process_time()
    while asked:
        told = []
        for trial in asked:
            assert space.feasible(trial.candidate)
            value = fitness(trial.candidate)
            spent += trial.fidelity
            if trial.fidelity == 1.0 and spent <= evaluations:
                best = min(best, value)
            value = value if value <= trial.bound else np.inf
            told.append(Trial(trial.candidate, trial.fidelity, value, trial.bound))
        candidates += len(told)
        if spent >= evaluations:
            break
        inside -= time.process_time()
        algorithm.tell(told)
        asked = algorithm.ask()
        inside += time.process_time()
    return best, inside / candidates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--timings", type=Path, required=True)
    parser.add_argument("--evaluations", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--layers", type=int, nargs="+", default=[20, 54, 105, 224])
    parser.add_argument("--budgets", type=float, nargs="+", default=[2.0, 3.0])
    parser.add_argument("--seen", nargs="+", choices=_SEEN, default=list(_SEEN))
    parser.add_argument("--algorithms", nargs="+", default=["ga", "pso", "abc"])
    parser.add_argument("--tuning", action="store_true", help="the instances for tuning")
    options = parser.parse_args()
    print(
        f"gap closed in %, median (least) of {options.seeds} instances, and ms a candidate; cold, "
        f"{options.evaluations} evaluations"
    )
    for kind in options.seen:
        for layers in options.layers:
            for speedup in options.budgets:
                runs: dict[str, list[tuple[float, float]]] = {a: [] for a in options.algorithms}
                for seed in range(options.seeds):
                    instance = seed + _TUNING * options.tuning
                    space = joined(options.timings, layers, speedup, instance)
                    seen, fitness, best = problem(space, kind, instance)
                    start = fitness(uniform(space))
                    for name in options.algorithms:
                        found, cost = drive(name, seen, fitness, seed, options.evaluations)
                        runs[name].append((100 * (start - found) / (start - best), cost))
                line = f"{kind:6} {layers:4} {speedup:g}x"
                for name, made in runs.items():
                    closed = [share for share, _ in made]
                    cost = 1e3 * statistics.median(seconds for _, seconds in made)
                    middle, least = statistics.median(closed), min(closed)
                    line += f"  {name} {middle:6.1f} ({least:6.1f}) {cost:4.1f}"
                print(line, flush=True)


if __name__ == "__main__":
    main()
