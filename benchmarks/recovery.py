"""What each recovery step wins back: test accuracy of the ResNet-20's additive optimum stitched,
re-tuned, after global AdaPrune and after fine-tuning with its masks held, and how small the packed
model is.

    python benchmarks/recovery.py --data PATH/TO/DATA [--work FOLDER] [--budget 0.125]
        [--lintune '{}'] [--adaprune '{}'] [--finetune '{}']

The ResNet-20 and database of benchmarks/resnet20.py. The steps take their settings as JSON
(docs/JOBS.md); null leaves one out."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from resnet20 import job

from apportion.evaluators.training.config import RecoveryConfig
from apportion.search.cli.progress import TerminalProgress
from apportion.search.export.exporting import export, score_profile
from apportion.search.runs.pipeline import prepare
from apportion.search.space.additive import optimum


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("scratch/resnet20"))
    parser.add_argument("--budget", type=float, default=0.125)
    parser.add_argument("--lintune", type=json.loads, default=None)
    parser.add_argument("--adaprune", type=json.loads, default={})
    parser.add_argument("--finetune", type=json.loads, default={})
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    given = SimpleNamespace(**vars(options), errors="loss", evaluations=1, seeds=[0])
    steps = {"lintune": options.lintune, "adaprune": options.adaprune, "finetune": options.finetune}
    recovery = RecoveryConfig.model_validate(steps)
    with TerminalProgress() as progress, tempfile.TemporaryDirectory() as folder:
        problem = prepare(job(given, options.budget), progress)  # type: ignore[arg-type]
        with problem:
            profile = problem.profile(problem.decisions.expand(optimum(problem.space)))
            chosen = score_profile(profile, problem, "additive optimum")
            started = time.monotonic()
            exported = export(
                chosen, problem, Path(folder) / "out", progress, ("compressed",), recovery
            )
    for step, accuracy in exported.content["accuracy"].items():
        print(f"{step:12} {accuracy:6.2f} %")
    packed = exported.content["exports"]["model.packed"]
    print(
        f"packed: {packed['bytes']} bytes, {packed['of_dense']:.3f} of dense; all in "
        f"{time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
