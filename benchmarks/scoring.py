"""Candidates per second, alternating in one process, of every stream that the search really asks
for, against (a) plain forward passes of the dense model over the same calibration data, and (b) the
reference's way: swap the weights of all layers, run all of the model.

    python benchmarks/scoring.py --data PATH/TO/DATA [--work FOLDER] [--device cpu] [--threads 2]
        [--rounds 5] [--candidates 24] [--streams full swaps ...]

The ResNet-20 with 1,024 images and the 45-level database of benchmarks/resnet20.py (built where it
is not there). Streams: full, every layer differs from the candidate before; swaps, two layers
differ; those of local, ga and evopress (recorded on the additive error); sensitivity, every 11th
level of every layer alone. A ratio is the median over the rounds of (b)'s time over ours."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resnet20 import job

from apportion.evaluators.scoring.pool import prefix_order
from apportion.evaluators.scoring.stitched import StitchedScorer
from apportion.search.algorithms.registry import create
from apportion.search.runs.pipeline import prepare
from apportion.search.space.additive import optimum
from apportion.search.space.space import Candidate, SearchSpace


def streams(space: SearchSpace, count: int) -> dict[str, list[list[Candidate]]]:
    """Name -> the batches that are asked, in turn."""
    rng = np.random.default_rng(0)
    made: dict[str, list[list[Candidate]]] = {
        "full": [[_redrawn(space, rng) for _ in range(count)]]
    }
    swaps = [optimum(space)]
    while len(swaps) < count:
        swaps.append(_swapped(space, rng, swaps[-1]))
    made["swaps"] = [[candidate] for candidate in swaps]  # one at a time: no sorting helps
    for name in ("local", "ga", "evopress"):
        made[name] = _recorded(space, name, count)
    dense = tuple(levels.index("dense") for levels in space.levels)
    made["sensitivity"] = [
        [
            (*dense[:i], level, *dense[i + 1 :])
            for level in range(0, len(levels), max(1, len(levels) // 4))
            if level != dense[i]
        ]
        for i, levels in enumerate(space.levels)
    ]
    return made


def _redrawn(space: SearchSpace, rng: np.random.Generator) -> Candidate:
    return tuple(int(rng.integers(1, len(levels))) for levels in space.levels)


def _swapped(space: SearchSpace, rng: np.random.Generator, candidate: Candidate) -> Candidate:
    """Two random layers, one level up and one down; others stay (the budget plays no part here)."""
    changed = list(candidate)
    for layer, direction in zip(rng.choice(len(changed), 2, replace=False), (-1, 1), strict=True):
        changed[layer] = int(np.clip(changed[layer] + direction, 0, len(space.levels[layer]) - 1))
    return tuple(changed)


def _recorded(space: SearchSpace, name: str, count: int) -> list[list[Candidate]]:
    algorithm = create(name, space, np.random.default_rng(1), 300)
    batches: list[list[Candidate]] = []
    skip = 60  # a search in full course, not its start
    while sum(map(len, batches)) < count:
        asked = algorithm.ask()
        told = [type(t)(t.candidate, t.fidelity, space.error(t.candidate)) for t in asked]
        algorithm.tell(told)
        skip -= len(asked)
        if skip < 0:
            batches.append([t.candidate for t in asked])
    return batches


def timed(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Reference(StitchedScorer):
    """Swaps all layers for every candidate, and runs all of the model."""

    def score(
        self, candidate: Candidate, fidelity: float = 1.0, bound: float = float("inf")
    ) -> float:
        self._placed = [None] * len(self._placed)
        self._sums.clear()
        return super().score(candidate, fidelity, bound)


def run_stream(
    scorer: StitchedScorer, batches: Sequence[list[Candidate]], sort: bool
) -> list[float]:
    found = []
    for batch in batches:
        order = (
            prefix_order([(candidate, 1.0) for candidate in batch]) if sort else range(len(batch))
        )
        scores = {n: scorer.score(batch[n]) for n in order}
        found += [scores[n] for n in range(len(batch))]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("scratch/resnet20"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--streams", nargs="+", help="these alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    given = argparse.Namespace(**vars(options), errors="layer", evaluations=10, seeds=[0])
    problem: Any = prepare(job(given, 0.25))
    workload, database, device = problem.workload, problem.database, options.device
    ours = StitchedScorer(workload, database, "loss", "batch", device=device)
    reference = Reference(workload, database, "loss", "batch", device=device, prefix_bytes=0)
    dense = tuple(levels.index("dense") for levels in problem.full_space.levels)

    def plain() -> None:
        with torch.inference_mode(), reference._in_mode():
            for x, _ in reference._batches:
                reference._model(x)

    reference.score(dense)
    for _ in range(2):
        plain()
    print(
        f"{device}, {options.threads} threads, {options.rounds} rounds; per candidate in ms, "
        "medians"
    )
    heads = (
        ("stream", 12),
        ("scored", 7),
        ("ours", 8),
        ("plain (a)", 9),
        ("swap all (b)", 12),
        ("ours/a", 7),
        ("b/ours", 7),
    )
    print(" ".join(f"{head:>{width}}" for head, width in heads))
    for name, batches in streams(problem.full_space, options.candidates).items():
        if options.streams and name not in options.streams:
            continue
        count = sum(map(len, batches))
        assert run_stream(ours, batches, True) == run_stream(reference, batches, False), (
            "the scores differ"
        )  # and warms up
        mine, forward, theirs = [], [], []
        for _ in range(options.rounds):
            ours._sums.clear()
            mine.append(timed(partial(run_stream, ours, batches, True), device) / count)
            forward.append(statistics.median(timed(plain, device) for _ in range(5)))
            theirs.append(timed(partial(run_stream, reference, batches, False), device) / count)
        medians = [1e3 * statistics.median(t) for t in (mine, forward, theirs)]
        over, gain = ratio(mine, forward), ratio(theirs, mine)
        print(
            f"{name:>12} {count:7} {medians[0]:8.1f} {medians[1]:9.1f} {medians[2]:12.1f} "
            f"{over:7.3f} {gain:6.2f}x",
            flush=True,
        )


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(above, below, strict=True))


if __name__ == "__main__":
    main()
