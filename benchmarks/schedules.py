"""What steps are worth: test accuracy of the CIFAR ResNet-20 at one budget, reached at once or by
each schedule, after the same epochs of training in all.

    python benchmarks/schedules.py --data PATH/TO/DATA [--channels 3x] [--masks 12x] [--epochs 4]
        [--kinds one-shot agp linear netadapt]

Channels: `flops` by channel groups. Masks: `params` by unstructured sparsity. Schedules of steps
have three, and train an epoch after each but the last, which has what is left. netadapt's short
trainings along the way that is kept are counted; those of proposals that were not kept are extra,
and printed. The dense model is the teacher throughout."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from apportion.compressors.threads import torch_threads
from apportion.search.cli.progress import TerminalProgress
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.schedules.prune import prune

_STEPS, _BATCH, _SHORT, _LOWERED = 3, 128, 8, 0.1
_CHANNELS = ("dense", *(f"channels-{eighths / 8}" for eighths in range(1, 8)))
_MASKS = ("dense", "unstr-0.50", "unstr-0.75", "unstr-0.85", "unstr-0.90", "unstr-0.95")


def job(data: Path, work: Path, seed: int) -> dict[str, Any]:
    """Without levels, budget and schedule."""
    return {
        "workload": {
            "model": "cifar_resnet20",
            "weights": str(data / "models/resnet20_cifar10.safetensors"),
            "data": {
                "kind": "npz",
                "calibration": str(data / "cifar10/calib1024.npz"),
                "train": str(data / "cifar10/train4096.npz"),
                "test": str(data / "cifar10/test5000.npz"),
            },
            "calibration_samples": 512,
            "batch_size": _BATCH,
            "seed": seed,
        },
        "search": {"algorithms": [{"milp": {"cold": True}}], "evaluations": 1, "picks": 1},
        "store": f"sqlite:///{work / 'runs.sqlite'}",
    }


def schedules(kinds: list[str], epochs: int, masks: bool) -> dict[str, tuple[dict[str, Any], int]]:
    """Name -> the schedule, and the epochs after its last step."""
    between = epochs - (_STEPS - 1)
    made: dict[str, tuple[dict[str, Any], int]] = {}
    for kind in kinds:
        if kind == "one-shot":
            made[kind] = {"kind": kind}, epochs
        elif kind == "netadapt":
            if not masks:
                made[kind] = {"kind": kind, "step": _LOWERED, "short": _SHORT}, epochs - 2
        else:
            made[kind] = {"kind": kind, "iterations": _STEPS}, between
            if masks:
                made[f"{kind}, regrow"] = {**made[kind][0], "regrow": True}, between
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--channels", default="3x", help="0: none")
    parser.add_argument("--masks", default="12x", help="0: none")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    every = ["one-shot", "agp", "linear", "netadapt"]
    parser.add_argument("--kinds", nargs="+", default=every, choices=every)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, TerminalProgress() as progress:
        work = Path(folder)
        for what, metric, levels, budget in (
            ("channels", "flops", _CHANNELS, options.channels),
            ("masks", "params", _MASKS, options.masks),
        ):
            if budget == "0":
                continue
            masks = what == "masks"
            for name, (schedule, last) in schedules(options.kinds, options.epochs, masks).items():
                finetune = {"epochs": last, "learning_rate": 0.02, "temperature": 4.0}
                finetune["augment"] = {"crop": 4, "flip": True}  # type: ignore[assignment]
                content = {
                    **job(options.data, work, options.seed),
                    "database": {"path": str(work / what), "levels": list(levels)},
                    "budgets": {metric: budget},
                    "recovery": {"finetune": finetune},
                    "schedule": schedule,
                    "workers": {"count": 0, "cpus": options.threads},
                }
                if not masks:
                    content["database"]["channels"] = {"multiple": 2}
                started = time.monotonic()
                with torch_threads(options.threads):
                    made = prune(
                        parse_model_job(content), work / f"{what}-{name}", progress
                    ).content["steps"]
                row(what, name, metric, made, options.epochs, last, time.monotonic() - started)


def row(
    what: str,
    name: str,
    metric: str,
    steps: list[dict[str, Any]],
    epochs: int,
    last: int,
    seconds: float,
) -> None:
    """Print what became of a schedule: cost as a share of dense, accuracy after each step, epochs
    along the way that was kept, and beside it."""
    found = " -> ".join(f"{list(step['accuracy'].values())[-1]:.2f}" for step in steps)
    proposals = sum(len(step.get("proposals", ())) for step in steps)
    kept = sum("proposals" in step for step in steps)
    each = _SHORT * _BATCH / 4096
    trained = last + kept * each if proposals else float(epochs)
    print(
        f"{what:8} {name:14} {metric} {steps[-1]['of_dense'][metric]:.4f}  {found}  "
        f"({trained:.2f} epochs, {(proposals - kept) * each:.1f} beside, {seconds:.0f} s)",
        flush=True,
    )


if __name__ == "__main__":
    main()
