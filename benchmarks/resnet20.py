"""The main job on the real CIFAR-10 ResNet-20, beside what the published reference implementations
gave on the same model and images: layer errors, and the profiles of dp (measured single-layer
losses) and spdy at several FLOPs budgets.

    python benchmarks/resnet20.py --data PATH/TO/DATA [--work FOLDER] [--speedups 2 4 8]
        [--evaluations 400] [--seeds 0]

PATH/TO/DATA holds cifar10/*.npz, models/resnet20_cifar10.safetensors and reference.json. Everything
is resumable: run it again."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from apportion.compressors.levels import parse_level
from apportion.db.runs.store import RunStore
from apportion.evaluators.data.config import NpzData
from apportion.evaluators.data.load import load_splits
from apportion.evaluators.scoring.stitched import StitchedScorer
from apportion.evaluators.workloads.workload import Workload
from apportion.search.cli.progress import TerminalProgress
from apportion.search.export.exporting import export
from apportion.search.jobs.job import Job
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import ModelProblem, prepare, run_search

_PATTERNS = ["mag:unstr-0.50", "unstr-0.50", "unstr-0.75", "unstr-0.90"]


def job(options: argparse.Namespace, budget: float, algorithm: str = "dp") -> Job:
    """The job of the reference: 45 unstructured levels, one FLOPs budget, loss with the batch's
    statistics."""
    data = options.data.absolute()
    return parse_model_job(
        {
            "workload": {
                "model": "cifar_resnet20",
                "weights": str(data / "models/resnet20_cifar10.safetensors"),
                "data": {
                    "kind": "npz",
                    "calibration": str(data / "cifar10/calib1024.npz"),
                    "test": str(data / "cifar10/test5000.npz"),
                    "train": str(data / "cifar10/train4096.npz"),
                },
                "calibration_samples": 1024,
            },
            "database": {
                "path": str(options.work.absolute() / "database"),
                "levels": ["dense", "unstr-0.10..0.99"],
            },
            "budgets": {"flops": budget},
            "errors": options.errors,
            "fitness": "loss",
            "batchnorm": "batch",
            "search": {
                "algorithms": [algorithm],
                "evaluations": options.evaluations,
                "seeds": options.seeds,
            },
            "workers": {"count": 0, "cpus": options.threads},
            "store": f"sqlite:///{options.work.absolute() / 'runs.sqlite'}",
        }
    )


def layer_errors(options: argparse.Namespace, reference: dict[str, Any]) -> None:
    """Errors of the reference's three layers, from one elimination each, on the calibration
    images."""
    from apportion.compressors.calibration import FullPass
    from apportion.compressors.hessian import collect_hessians
    from apportion.compressors.kinds.find import find_layers
    from apportion.compressors.obs import compress_layer
    from apportion.evaluators.workloads.workload import load_workload

    workload = load_workload(job(options, 0.5).workload)
    wanted = reference["layer_errors"]["layers"]
    data = FullPass(
        lambda: (inputs for inputs, _ in workload.calibration.batches(workload.batch_size))
    )
    layers = [own for own in find_layers(workload.model, data).layers if own.name in wanted]
    hessians = collect_hessians(workload.model, layers, data)
    modules = dict(workload.model.named_modules())
    print(f"{'layer':16} {'level':16} {'ours':>12} {'reference':>12} {'relative':>10}")
    for layer in layers:
        levels = [parse_level(text) for text in _PATTERNS]
        for made in compress_layer(modules[layer.name].weight, layer, hessians[layer.name], levels):
            theirs = {str(parse_level(k)): v for k, v in wanted[layer.name].items()}[
                str(made.level)
            ]
            print(
                f"{layer.name:16} {made.level!s:16} {made.error:12.5f} {theirs:12.5f} "
                f"{made.error / theirs - 1:10.1e}"
            )


def in_file_order(problem: ModelProblem) -> StitchedScorer:
    """A scorer on the reference's own batches: the calibration file from first to last."""
    config = problem.job.workload.data
    assert isinstance(config, NpzData)
    calibration = load_splits(config).calibration
    workload = Workload(
        problem.workload.model,
        calibration.subset(range(len(calibration))),
        problem.workload.train,
        problem.workload.test,
    )
    return StitchedScorer(workload, problem.database, "loss", "batch")


def report(options: argparse.Namespace, speedup: float, algorithm: str) -> None:
    """Searches (or resumes) with every seed at one budget, exports each pick, and prints a row for
    it."""
    with (
        TerminalProgress() as progress,
        prepare(job(options, 1 / speedup, algorithm), progress) as problem,
    ):
        assert problem.job.store is not None
        scorer = in_file_order(problem)
        for result in run_search(problem, RunStore(problem.job.store), progress):
            accuracy = export(
                result, problem, options.work / f"{result.run.id}-{speedup:g}x"
            ).content["accuracy"]
            pick = result.pick.candidate
            print(
                f"{speedup:g}x      {algorithm:12} {result.run.seed:4} {result.pick.fitness:8.5f} "
                f"{scorer.score(pick):8.5f} {problem.ratios(pick)['flops']:8.5f} "
                f"{accuracy['stitched']:8.2f} {accuracy['retuned']:8.2f} {result.evaluations:6.0f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("scratch/resnet20"))
    parser.add_argument("--speedups", type=float, nargs="+", default=[2, 4, 8])
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--algorithms", nargs="+", default=["dp", "spdy"])
    parser.add_argument(
        "--errors", choices=["loss", "layer"], default="loss", help="the additive table"
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    reference = json.loads((options.data / "reference.json").read_text())
    layer_errors(options, reference)
    print(
        "\nloss: calibration loss with batch statistics, our random batches; file: the same in "
        "file order, as theirs"
    )
    heads = (
        ("seed", 4),
        ("loss", 8),
        ("file", 8),
        ("flops", 8),
        ("stitched", 8),
        ("retuned", 8),
        ("evals", 6),
    )
    print(f"{'budget':7} {'profile':12} " + " ".join(f"{head:>{width}}" for head, width in heads))
    for speedup in options.speedups:
        for name in ("dp_loss", "spdy"):
            if row := reference["profiles"].get(f"{name}_{speedup:g}x"):
                print(
                    f"{speedup:g}x      ref {name:8} {'':>4} {'':>8} "
                    f"{row['calibration_loss_batchbn']:8.5f} "
                    f"{1 / row['flops_reduction']:8.5f} {row['accuracy']:8.2f} "
                    f"{row['accuracy_after_bn_retuning']:8.2f} "
                    f"{row.get('evaluations', ''):>6}"
                )
        for algorithm in options.algorithms:
            report(options, speedup, algorithm)


if __name__ == "__main__":
    main()
