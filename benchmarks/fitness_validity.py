"""Which fitness deserves to be searched: over profiles at several budgets, the rank correlation of
every fitness x batch-norm mode, and of the additive layer error, with the accuracy after re-tuning
on test images that none of them saw.

    python benchmarks/fitness_validity.py --data PATH/TO/DATA [--work FOLDER] [--profiles 200]
        [--budgets 0.5 0.33 0.25 0.167 0.125]

The ResNet-20 and database of benchmarks/resnet20.py. Profiles are what searches look at: the
additive optimum after one to eight paired level steps, and random ones that spend the budget, half
and half. Correlations are Spearman's within a budget, averaged over the budgets (1: the fitness
orders profiles exactly as their accuracy does), with 95 % intervals from 2,000 bootstrap samples of
the profiles; beside them those of the first half alone. Kept in WORK/validity.jsonl: run it again
to go on."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resnet20 import job
from scipy.stats import spearmanr

from apportion.compressors.calibration import FullPass
from apportion.compressors.corrections import correct
from apportion.evaluators.scoring.batchnorm import MODES
from apportion.evaluators.scoring.fitness import CRITERIA
from apportion.evaluators.scoring.stitched import StitchedScorer
from apportion.evaluators.workloads.evaluate import evaluate
from apportion.search.cli.progress import TerminalProgress
from apportion.search.runs.pipeline import ModelProblem, prepare
from apportion.search.space.additive import optimum
from apportion.search.space.moves import begin, step
from apportion.search.space.space import Candidate


class Scorers:
    """Every fitness in every batch-norm mode, from one pass a mode."""

    def __init__(self, problem: ModelProblem) -> None:
        self._scorers = {
            mode: StitchedScorer(problem.workload, problem.database, "kl", mode) for mode in MODES
        }

    def __call__(self, candidate: Candidate) -> dict[str, float]:
        found: dict[str, float] = {}
        for mode, scorer in self._scorers.items():
            totals = dict.fromkeys(CRITERIA, 0.0)
            with torch.inference_mode(), scorer._ready(candidate) as outputs_of:
                for b, batch in enumerate(scorer._batches):
                    outputs = outputs_of(b)
                    for name, criterion in CRITERIA.items():
                        values = criterion(scorer._task, outputs, batch, scorer._dense_outputs[b])
                        totals[name] += float(values.sum())
            count = sum(scorer._samples)
            found |= {f"{name}, {mode}": total / count for name, total in totals.items()}
        return found


def retuned_accuracy(problem: ModelProblem, candidate: Candidate) -> float:
    model = copy.deepcopy(problem.workload.model)
    problem.database.stitch(model, problem.profile(candidate))
    train = problem.workload.train
    size = problem.workload.batch_size
    correct("batchnorm", model, FullPass(lambda: (x for x, _ in train.batches(size))), {})
    return evaluate(problem.workload, model)


def sample(problem: ModelProblem, number: int) -> Candidate:
    space, rng = problem.space, np.random.default_rng([7, number])
    if number % 2:
        return begin(space, rng)
    candidate = optimum(space)
    for _ in range(int(rng.integers(1, 9))):
        candidate = step(space, rng, candidate)
    return candidate


def collect(options: argparse.Namespace) -> list[dict[str, Any]]:
    file = options.work / "validity.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    there = {(row["budget"], row["number"]) for row in rows}
    given = argparse.Namespace(
        **vars(options), errors="layer", evaluations=1, seeds=[0], threads=torch.get_num_threads()
    )
    problems = {budget: prepare(job(given, budget)) for budget in options.budgets}
    score: Callable[[Candidate], dict[str, float]] = Scorers(next(iter(problems.values())))
    wanted = [
        (options.budgets[i % len(options.budgets)], i // len(options.budgets))
        for i in range(options.profiles)
    ]
    with TerminalProgress() as progress, file.open("a") as out:
        for done, (budget, number) in enumerate(wanted):
            if (budget, number) not in there:
                problem = problems[budget]
                candidate = sample(problem, number)
                row = {
                    "budget": budget,
                    "number": number,
                    "layer error": problem.space.error(candidate),
                    **score(candidate),
                }
                row["accuracy"] = retuned_accuracy(problem, candidate)
                rows.append(row)
                out.write(json.dumps(row) + "\n")
                out.flush()
            progress("score profiles", done + 1, len(wanted))
    return [row for row in rows if (row["budget"], row["number"]) in set(wanted)]


def correlation(groups: list[list[dict[str, Any]]], name: str) -> float:
    """Mean over the budgets of the rank correlation of -fitness and accuracy."""
    found = [
        spearmanr([-row[name] for row in group], [row["accuracy"] for row in group]).statistic
        for group in groups
    ]
    return float(np.nanmean(found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("scratch/resnet20"))
    parser.add_argument("--profiles", type=int, default=200)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.33, 0.25, 0.167, 0.125])
    options = parser.parse_args()
    rows = collect(options)
    groups = [[row for row in rows if row["budget"] == budget] for budget in options.budgets]
    rng = np.random.default_rng(0)
    resampled = [
        [
            [group[i] for i in rng.integers(len(group), size=len(group))]
            for group in groups
            if len(group) > 2
        ]
        for _ in range(2000)
    ]
    names = [name for name in rows[0] if name not in ("budget", "number", "accuracy")]
    table = []
    for name in names:
        low, high = np.nanpercentile([correlation(again, name) for again in resampled], [2.5, 97.5])
        table.append((correlation(groups, name), low, high, name))
    print(f"{len(rows)} profiles, budgets {options.budgets}; accuracies "
          f"{min(r['accuracy'] for r in rows):.1f} "
          f"to {max(r['accuracy'] for r in rows):.1f} %")  # fmt: skip
    near = [[row for row in group if row["number"] % 2 == 0] for group in groups]
    heads = "".join(f"{f'at {budget:g}':>10}" for budget in options.budgets)
    print(f"{'':24} {'all':>16} {'95 % interval':>16} {'near the optimum':>18}{heads}")
    for middle, low, high, name in sorted(table, reverse=True):
        single = "".join(f"{correlation([group], name):10.3f}" for group in near)
        print(
            f"{name:24} {middle:16.3f} {low:8.3f} {high:7.3f} "
            f"{correlation(near, name):18.3f}{single}"
        )


if __name__ == "__main__":
    main()
