"""Every kind of level on the real CIFAR-10 ResNet-20, all layers at it that it fits: test accuracy
as stitched and after batch-norm re-tuning, ExactOBS beside the data-free baseline, and beside the
published reference where it has the row.

    python benchmarks/kinds.py --data PATH/TO/DATA [--work FOLDER] [--rounds 0]
        [--corrections batchnorm]

PATH/TO/DATA holds cifar10/*.npz, models/resnet20_cifar10.safetensors and reference.json. --rounds N
builds on N augmented rounds of the calibration images instead of the plain ones; --corrections adds
columns for statistics and bias correction."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

from apportion.compressors.calibration import FullPass
from apportion.compressors.corrections import correct, record
from apportion.compressors.levels import parse_level
from apportion.evaluators.workloads.evaluate import evaluate
from apportion.search.cli.progress import TerminalProgress
from apportion.search.jobs.job import Job
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.building import build

ROWS = {
    "w8": "rtn:w8",
    "w4": "rtn:w4",
    "w3": "rtn:w3",
    "w2": "rtn:w2",
    "2:4": "mag:2:4",
    "4:8": "mag:4:8",
    "block4-0.50": "mag:block4-0.50",
    "unstr-0.50": "mag:unstr-0.50",
    "unstr-0.75": "mag:unstr-0.75",
    "unstr-0.90": "mag:unstr-0.90",
    "2:4+w8a8": "mag:2:4+rtn:w8a8",
    "w4a4": "rtn:w4a4",
}


def job(options: argparse.Namespace) -> Job:
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
                "path": str(options.work.absolute() / f"database-{options.rounds}"),
                "levels": ["dense", *ROWS, *ROWS.values()],
                "augment": {"rounds": options.rounds} if options.rounds else None,
            },
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("scratch/kinds"))
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--corrections", nargs="+", default=["batchnorm"])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    reference = json.loads((options.data / "reference.json").read_text())["uniform_kinds"]
    published = {str(parse_level(name)): row for name, row in reference.items()}
    with TerminalProgress() as progress:
        workload, database = build(job(options), progress)

    def batches() -> Any:
        return (inputs for inputs, _ in workload.train.batches(workload.batch_size))

    data = FullPass(batches)
    recorded = record(workload.model, data)

    def accuracies(level: str) -> list[float]:
        levels = database.levels()
        profile = {
            name: parse_level(level if level in own else "dense") for name, own in levels.items()
        }
        found = []
        for correction in (None, *options.corrections):
            model = copy.deepcopy(workload.model)
            database.stitch(model, profile)
            if correction:
                correct(correction, model, data, recorded)
            found.append(evaluate(workload, model))
        return found

    heads = ["stitched", *options.corrections]
    print(
        f"dense {accuracies('dense')}\n{'':12} | {'ExactOBS':^{11 * len(heads)}} | "
        f"{'baseline':^{11 * len(heads)}} | published"
    )
    line = " ".join(f"{head:>10}" for head in heads)
    print(f"{'level':12} | {line} | {line} | stitched, re-tuned")
    for exact, free in ROWS.items():
        ours, theirs = (
            " ".join(f"{a:10.2f}" for a in accuracies(level)) for level in (exact, free)
        )
        row = published.get(exact)
        seen = f"{row['accuracy']:.2f} {row['accuracy_after_bn_retuning']:.2f}" if row else "-"
        print(f"{exact:12} | {ours} | {theirs} | {seen}", flush=True)


if __name__ == "__main__":
    main()
