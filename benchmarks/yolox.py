"""YOLOX-nano from an ONNX file to an ONNX file: mean average precision of the file as it is, of the
torch module made of it, of a compressed profile, and of that exported again and run by ONNX
Runtime.

    python benchmarks/yolox.py --data PATH/TO/DATA [--work FOLDER] [--images 64] [--budget 4x]
        [--evaluations 30] [--threads 2]

The data folder has detection/images, detection/labels and detection/yolox_nano.onnx. Pre- and
post-processing are YOLOX's (Ge et al. 2021), as a task of one's own has them: images in the upper
left of a square of 416, the rest 114, BGR from 0 to 255. 16 images calibrate, all are tested on."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import apportion
from apportion.db.runs.sqlite import sqlite_url
from apportion.evaluators.data import forms
from apportion.evaluators.data.load import load_splits
from apportion.evaluators.data.registry import Context
from apportion.evaluators.data.vision.config import BoxesData
from apportion.evaluators.models.build import build_model, settled
from apportion.evaluators.tasks.vision.dense_detection import DenseDetection
from apportion.evaluators.tasks.vision.detections import Found
from apportion.evaluators.tasks.vision.object_detection import Boxes
from apportion.evaluators.workloads.evaluate import evaluate
from apportion.search.cli.progress import TerminalProgress

SIDE, STRIDES, PAD = 416, (8, 16, 32), 114
CALIBRATION = 16
LEVELS = ["dense", "w8", "w6", "w5", "w4", "unstr-0.50", "unstr-0.70"]


class YoloX(DenseDetection):
    """Outputs [n, 3549, 85]: a box relative to its cell, and probabilities."""

    def detections(self, outputs: Tensor, batch: Boxes) -> Found:  # noqa: ARG002
        from torchvision.ops import batched_nms

        cells, strides = _grid(outputs)
        centres = (outputs[..., :2] + cells) * strides
        sizes = outputs[..., 2:4].exp() * strides
        boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], -1)
        scores = outputs[..., 4:5] * outputs[..., 5:]
        found = []
        for own, score in zip(boxes, scores, strict=True):
            best, labels = score.max(-1)
            there = best > 0.001
            kept = batched_nms(own[there], best[there], labels[there], 0.65)
            found.append(
                {
                    "boxes": own[there][kept],
                    "scores": best[there][kept],
                    "labels": labels[there][kept],
                }
            )
        return found


def _grid(outputs: Tensor) -> tuple[Tensor, Tensor]:
    cells, strides = [], []
    for stride in STRIDES:
        at = torch.arange(SIDE // stride)
        y, x = torch.meshgrid(at, at, indexing="ij")
        cells.append(torch.stack([x, y], -1).reshape(-1, 2))
        strides.append(torch.full((len(cells[-1]), 1), stride))
    return torch.cat(cells).to(outputs), torch.cat(strides).to(outputs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("scratch/yolox"))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--budget", default="4x")
    parser.add_argument("--evaluations", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    folder = options.data / "detection"
    config = {
        "kind": "boxes",
        "calibration": folder,
        "test": folder,
        "size": SIDE,
        "pad": PAD,
        "order": "bgr",
        "scale": 1,
    }
    splits = load_splits(BoxesData.model_validate(config), Context(form=forms.BOXES))
    images, boxes = splits.test.subset(range(options.images)).batch
    file = str(folder / "yolox_nano.onnx")
    model = settled(build_model(file), file, images[:2])
    with (
        TerminalProgress() as progress,
        apportion.prepare(
            model,
            task=YoloX(),
            calibration=[(images[:CALIBRATION], boxes[:CALIBRATION])],
            test=[(images, boxes)],
            levels=LEVELS,
            budgets={"bits": options.budget},
            database=options.work / "database",
            workload={"batch_size": 8},
            search={"algorithms": ["evopress"], "evaluations": options.evaluations},
            progress=progress,
        ) as problem,
    ):
        own = problem.workload
        print(f"{len(problem.full_space.layers)} layers, {len(images)} images")
        print(f"{'ONNX file':22} mAP {evaluate(own, session(file)):.4f}", flush=True)
        print(f"{'torch':22} mAP {evaluate(own, own.model):.4f}", flush=True)
        started = time.monotonic()
        store = apportion.RunStore(sqlite_url(options.work / "runs.sqlite"))
        (result,) = apportion.run_search(problem, store, progress)
        print(f"searched in {time.monotonic() - started:.0f} s")
        out = apportion.export(
            result, problem, options.work / "out", progress, formats=("safetensors", "onnx")
        )
        for name, value in out.content["mAP"].items():
            print(f"{name:22} mAP {value:.4f}")
        for name, written in out.content["exports"].items():
            print(f"{name:22} mAP {written['mAP']:.4f}, {written['bytes']} bytes")


def session(file: str) -> Any:
    """The file as it is, image by image, as it takes batches of one."""
    import onnxruntime

    opened = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in opened.get_inputs())

    def run(images: Tensor) -> Tensor:
        outputs = [opened.run(None, {name: image[None].numpy()})[0] for image in images]
        return torch.from_numpy(np.concatenate(outputs))

    return run


if __name__ == "__main__":
    main()
