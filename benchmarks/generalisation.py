"""Do gains of a search hold on images that it never saw? Profiles of several searches beside the
additive optimum's, after re-tuning, on test images: accuracy, agreement and KL with the dense
model, each with a 95 % interval of the difference from a paired bootstrap over the images.

    python benchmarks/generalisation.py --data PATH/TO/DATA [--work FOLDER] [--budget 0.125]
        [--algorithms surrogate] [--seeds 0] [--evaluations 300] [--errors loss]
        [--searches loss/batch/calib/1024 kl/batch/train/4096 ...] [--target 0.3499]

Beside them how each search went: its fitness after 50, 100, ... evaluations, and after how many it
passed `target`.

The ResNet-20 and database of benchmarks/resnet20.py. A search is FITNESS/BATCHNORM/IMAGES/NUMBER;
its images are `calib`, which the database was made from, or `train`, which it was not. Kept in
WORK/generalisation.sqlite: run it again to go on."""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from resnet20 import job
from torch import Tensor

from apportion.compressors.calibration import FullPass
from apportion.compressors.corrections import correct
from apportion.db.runs.store import RunStore
from apportion.search.algorithms.registry import create
from apportion.search.cli.progress import TerminalProgress
from apportion.search.report.statistics import Anytime
from apportion.search.runs.loop import RunResult, search
from apportion.search.runs.pipeline import ModelProblem, make_run, prepare
from apportion.search.space.additive import optimum
from apportion.search.space.space import Candidate

_AFTER = (50, 100, 200, 300)
_SEARCHES = [
    "loss/batch/calib/1024",
    "kl/recalibrate/calib/1024",
    "kl/recalibrate/train/2048",
    "kl/batch/train/4096",
]


class Judge:
    """Per test image, after re-tuning: right or not, as the dense model or not, and KL from it."""

    def __init__(self, problem: ModelProblem) -> None:
        self._problem = problem
        workload = problem.workload
        self._labels = torch.cat(
            [labels for _, labels in workload.test.batches(workload.batch_size)]
        )
        self._dense = self._outputs(workload.model)

    def __call__(self, candidate: Candidate) -> dict[str, np.ndarray]:
        workload = self._problem.workload
        model = copy.deepcopy(workload.model)
        self._problem.database.stitch(model, self._problem.profile(candidate))
        correct(
            "batchnorm",
            model,
            FullPass(lambda: (x for x, _ in workload.train.batches(workload.batch_size))),
            {},
        )
        outputs = self._outputs(model)
        divergence = F.kl_div(
            outputs.log_softmax(1), self._dense.log_softmax(1), log_target=True, reduction="none"
        ).sum(1)
        return {
            "accuracy": 100.0 * (outputs.argmax(1) == self._labels).double().numpy(),
            "agreement": 100.0 * (outputs.argmax(1) == self._dense.argmax(1)).double().numpy(),
            "kl": divergence.double().numpy(),
        }

    def _outputs(self, model: torch.nn.Module) -> Tensor:
        workload = self._problem.workload
        with torch.inference_mode():
            return torch.cat([model(x) for x, _ in workload.test.batches(workload.batch_size)])


def find(
    problem: ModelProblem,
    what: str,
    algorithm: str,
    seed: int,
    options: argparse.Namespace,
    progress: TerminalProgress,
) -> RunResult:
    """One search."""
    fitness, batchnorm, images, number = what.split("/")
    split = problem.workload.calibration if images == "calib" else problem.workload.train
    workload = replace(problem.workload, calibration=split.subset(range(int(number))))
    name = f"{what}/{options.budget:g}" + ("" if options.errors == "loss" else f"/{options.errors}")
    own = replace(
        problem,
        workload=workload,
        job=problem.job.model_copy(update={"fitness": fitness, "batchnorm": batchnorm}),
        key=name,
        id=name,
    )
    store = RunStore(f"sqlite:///{options.work.absolute() / 'generalisation.sqlite'}")
    store.add_job(name, own.job.model_dump(mode="json"))
    run = store.add_run(make_run(name, algorithm, {}, seed, options.evaluations))
    with own:
        made = create(algorithm, own.space, np.random.default_rng(seed), options.evaluations, {})
        found = search(
            made, own.space, own.pool(), store, run, own.key, progress, own.decisions.expand
        )
    store.close()
    return found


def course_of(found: RunResult, problem: ModelProblem, target: float | None) -> str:
    additive = problem.decisions.expand(optimum(problem.space))
    start = next(
        (t.fitness for t in found.trials if t.candidate == additive and t.fidelity == 1.0),
        float("nan"),
    )
    curve = Anytime.of([(t.fidelity, t.fitness) for t in found.trials], found.run.evaluations)
    reached = [curve.best[curve.spent <= end].min(initial=float("inf")) for end in _AFTER]
    passed = None if target is None else curve.reached(target)
    return (
        f"{start:10.4f}"
        + "".join(f"{fitness:10.4f}" for fitness in reached)
        + f"{'-' if passed is None else f'{passed:.4g}':>10}"
    )


def interval(difference: np.ndarray) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    means = [
        difference[rng.integers(len(difference), size=len(difference))].mean() for _ in range(2000)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("scratch/resnet20"))
    parser.add_argument("--budget", type=float, default=0.125)
    parser.add_argument("--algorithms", nargs="+", default=["surrogate"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--searches", nargs="+", default=_SEARCHES)
    parser.add_argument(
        "--errors", choices=["loss", "layer"], default="loss", help="the additive table"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--target", type=float, help="a fitness to pass")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    given = SimpleNamespace(**vars(options))
    with TerminalProgress() as progress:
        problem = prepare(job(given, options.budget), progress)  # type: ignore[arg-type]
        judge = Judge(problem)
        reference = judge(problem.decisions.expand(optimum(problem.space)))
        heads = "".join(f"{name + ' (difference, 95 %)':>34}" for name in reference)
        course = "".join(f"{f'after {n}':>10}" for n in _AFTER)
        print(f"{'search':28} {'algorithm':10} seed{'optimum':>10}{course}    passed{heads}")
        print(
            f"{'additive optimum (dp)':28} {'':10} {'':64}"
            + "".join(f"{values.mean():34.4f}" for values in reference.values())
        )
        for what in options.searches:
            for algorithm in options.algorithms:
                for seed in options.seeds:
                    found = find(problem, what, algorithm, seed, options, progress)
                    judged = judge(found.best.candidate)
                    cells = []
                    for name, values in judged.items():
                        low, high = interval(values - reference[name])
                        cells.append(f"{values.mean():12.4f} ({low:+7.3f} to {high:+7.3f})")
                    row = "".join(f"{cell:>34}" for cell in cells)
                    print(
                        f"{what:28} {algorithm:10} "
                        f"{seed:4}{course_of(found, problem, options.target)}{row}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
