"""Exported files of the ResNet-20 on CIFAR-10 in every format: their size, how far their outputs
are from the stitched model's, and their test accuracy.

    python benchmarks/exports.py --data PATH/TO/DATA [--work FOLDER]

Profiles: every layer at w4; w4 and w4a8 in turn; every layer at unstr-0.90; unstr-0.50 and 2:4+w4
in turn, where they fit."""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import torch

from apportion.compressors.levels import parse_level
from apportion.search.cli.progress import TerminalProgress
from apportion.search.export.exporting import export, score_profile
from apportion.search.export.registry import names
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import prepare

_PROFILES = {
    "w4": ["w4"],
    "w4, w4a8": ["w4", "w4a8"],
    "unstr-0.90": ["unstr-0.90"],
    "mixed": ["unstr-0.50", "2:4+w4"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("scratch/exports"))
    options = parser.parse_args()
    data = options.data.absolute()
    torch.set_num_threads(1)
    images = {"calibration": "calib1024", "test": "test5000", "train": "train4096"}
    job = parse_model_job(
        {
            "workload": {
                "model": "cifar_resnet20",
                "weights": str(data / "models/resnet20_cifar10.safetensors"),
                "data": {
                    "kind": "npz",
                    **{part: str(data / f"cifar10/{name}.npz") for part, name in images.items()},
                },
            },
            "database": {
                "path": str(options.work.absolute() / "database"),
                "levels": ["dense", *dict.fromkeys(itertools.chain(*_PROFILES.values()))],
            },
            "budgets": {"bits": 1.0},
            "store": f"sqlite:///{options.work.absolute() / 'runs.sqlite'}",
        }
    )
    with TerminalProgress() as progress, tempfile.TemporaryDirectory() as folder:
        problem = prepare(job, progress)
        weights = sum(record.size for record in problem.database.layers.values())
        print(
            f"{'profile':12} {'model':12} {'accuracy':>8} {'bytes':>9} {'of dense':>8} "
            f"{'bits a weight':>13} {'difference':>10}"
        )
        with problem:
            for name, levels in _PROFILES.items():
                turn = itertools.cycle(levels)
                there = problem.database.levels()
                wanted = {layer: next(turn) for layer in there}
                profile = {
                    layer: parse_level(level if level in there[layer] else "dense")
                    for layer, level in wanted.items()
                }
                chosen = score_profile(profile, problem, name)
                content = export(chosen, problem, Path(folder) / name, progress, names()).content
                print(f"{name:12} {'retuned':12} {content['accuracy']['retuned']:8.2f}")
                for file, one in content["exports"].items():
                    bits = 8 * one["bytes"] / weights
                    size = f"{one['bytes']:9} {one['of_dense']:8.3f} {bits:13.2f}"
                    cells = f"{one['accuracy']:8.2f} {size} {one['largest_difference']:10.2g}"
                    print(f"{'':12} {file.removeprefix('model.'):12} {cells}", flush=True)


if __name__ == "__main__":
    main()
