"""What additive tables are worth: their ranks of single levels and of profiles near the optimum
against true KL on images that nothing saw, the KL of each table's optimum, and what each cost.

    python benchmarks/tables.py --data PATH/TO/DATA [--work FOLDER] [--levels unstr-0.10..0.99*0.7]
        [--tables layer probe fisher signed labels kl loss] [--speedups 2 3 4 6 8]
        [--profiles 200] [--some 512] [--judged 4096]

The ResNet-20 of benchmarks/resnet20.py. Tables are made on its 1,024 calibration images, `loss`
with running statistics alone (jobs of other batch-norm modes read it twice). `signed`
and `labels` are `fisher` along one random direction a sample: random signs of all of the curvature,
or a label sampled from the model's own distribution, as language models need. Optima are judged on
the first `judged` test images after batch-norm was re-tuned on the calibration images, single
levels (every second one, running statistics) and profiles on the last `some`, profiles re-tuned on
`some` too. Profiles are optima at 4x of the tables' geometric mean, layers and levels perturbed at
random, so that no table is nearer to them than another. Intervals are 95 % of 1,000 paired
bootstraps over images. Costs are processor seconds over those of one forward pass of the
calibration images. What is done is kept in WORK: run it again to go on."""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from resnet20 import job as reference_job
from scipy.stats import rankdata
from torch import Tensor

from apportion.compressors.calibration import FullPass
from apportion.compressors.corrections import correct
from apportion.db.layers.format import digest
from apportion.evaluators.scoring import directions, fisher, moves
from apportion.evaluators.tasks.distribution import Distribution
from apportion.search.cli.progress import TerminalProgress
from apportion.search.runs.pipeline import ModelProblem, prepare
from apportion.search.runs.tables import make_table
from apportion.search.space.milp import milp
from apportion.search.space.space import Candidate

TABLES = ["layer", "probe", "fisher", "signed", "labels", "kl", "loss"]
Table = tuple[np.ndarray, ...]
Vectors = Callable[[Sequence[Distribution], torch.Generator], list[Tensor]]


def signed(found: Sequence[Distribution], generator: torch.Generator) -> list[Tensor]:
    return [directions._signed(own, generator) for own in found]


def labels(found: Sequence[Distribution], generator: torch.Generator) -> list[Tensor]:
    """p - e_y, y drawn from p: the gradient of a sampled label's cross-entropy."""
    vectors = []
    for own in found:
        p = own.logits.detach().softmax(-1)
        drawn = torch.multinomial(p.flatten(0, -2), 1, generator=generator).view(*p.shape[:-1], 1)
        away = p - torch.zeros_like(p).scatter(-1, drawn, 1.0)
        vectors.append(own.weight.sqrt()[..., None] * away)
    return vectors


class Bench:
    def __init__(
        self, options: argparse.Namespace, problem: ModelProblem, progress: TerminalProgress
    ) -> None:
        self.options, self.problem, self.progress = options, problem, progress
        self.workload, self.database = problem.workload, problem.database
        test = self.workload.test
        self.judged = test.subset(range(options.judged)).batch[0]
        self.some = test.subset(range(len(test) - options.some, len(test))).batch[0]
        self.tuning = self.workload.calibration.batch[0]
        self.outputs = {id(x): _outputs(self.workload.model, x) for x in (self.judged, self.some)}
        self.folder = options.work / f"tables-{self.database.fingerprint[:8]}"
        self.folder.mkdir(exist_ok=True)

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once."""
        file = self.folder / f"{digest(name)[:16]}.json"
        if not file.exists():
            file.write_text(json.dumps(make()))
        return json.loads(file.read_text())

    def table(self, name: str) -> Table:
        return tuple(np.array(row) for row in self._kept(name)["rows"])

    def seconds(self, name: str) -> float:
        return float(self._kept(name)["seconds"])

    def _kept(self, name: str) -> Any:
        return self.keep(f"table {name}", lambda: self._made(name))

    def _made(self, name: str) -> dict[str, Any]:
        began = time.process_time()
        if name in ("signed", "labels"):
            rows = self._along({"signed": signed, "labels": labels}[name])
        else:
            job = self.problem.job.model_copy(update={"errors": name, "batchnorm": "running"})
            own = self.workload, self.database, self.problem.workers, self.progress
            rows = make_table(job, *own).rows
        seconds = time.process_time() - began
        return {"rows": [row.tolist() for row in rows], "seconds": seconds}

    def _along(self, vectors: Vectors) -> Table:
        count = len(self.workload.calibration)
        layers = tuple(
            fisher._moved(self.workload, self.database, name) for name in self.database.layers
        )
        work = moves.MoveWork(
            self.workload.model, self.workload.task, self.workload.calibration, layers
        )
        with mock.patch.object(moves, "directions", vectors):
            sums = moves.squared_moves(work, (0, count))
        return tuple(0.5 * own.numpy() / count for own in sums if own is not None)

    def seconds_of_a_pass(self) -> float:
        def run() -> float:
            began = time.process_time()
            _outputs(self.workload.model, self.tuning)
            return time.process_time() - began

        return float(self.keep("pass", lambda: float(np.median([run() for _ in range(3)]))))

    def kl(self, candidate: Candidate, images: Tensor, tuning: Tensor | None) -> np.ndarray:
        """KL to the dense model of each image; batch-norm re-tuned on `tuning`, where given."""
        model = copy.deepcopy(self.workload.model)
        self.database.stitch(model, self.problem.profile(candidate))
        if tuning is not None:
            correct("batchnorm", model, FullPass(lambda: tuning.split(128)), {})
        found, dense = _outputs(model, images), self.outputs[id(images)]
        return (dense.exp() * (dense - found)).sum(1).clamp_min(0).numpy()

    def kls(self, name: str, candidates: Sequence[Candidate], tuning: Tensor | None) -> np.ndarray:
        """[candidates, images] of the unseen `some`."""
        rows = []
        for i, candidate in enumerate(candidates):
            made = self.keep(
                f"{name} {candidate}", lambda c=candidate: self.kl(c, self.some, tuning).tolist()  # type: ignore[misc]
            )  # fmt: skip
            rows.append(made)
            self.progress(name, i + 1, len(candidates))
        return np.array(rows)

    def singles(self, every: int = 2) -> list[Candidate]:
        """One layer alone at every second level."""
        layers = range(len(self.problem.full_space.levels))
        return [
            tuple(i if layer == own else 0 for own in layers)
            for layer in layers
            for i in range(1, len(self.problem.full_space.levels[layer]), every)
        ]

    def near(self, tables: Sequence[Table], budget: float) -> list[Candidate]:
        """Different optima of the tables' mean, perturbed."""
        space, rng = self.space(budget), np.random.default_rng(0)
        mean = np.mean([_scaled(table) for table in tables], 0)
        found: dict[Candidate, None] = {}
        while len(found) < self.options.profiles:
            noise = [rng.normal(0, 0.7) + rng.normal(0, 0.3, len(r)) for r in tables[0]]
            logs = np.split(
                mean + np.concatenate(noise), np.cumsum([len(r) for r in tables[0]])[:-1]
            )
            rows = tuple(np.maximum.accumulate(np.exp(row)) for row in logs)
            found[milp(replace(space, errors=rows)).candidate] = None
            self.progress("draw profiles", len(found), self.options.profiles)
        return list(found)

    def space(self, speedup: float) -> Any:
        space = self.problem.full_space
        return replace(space, budgets={"flops": space.dense["flops"] / speedup})


def _outputs(model: torch.nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(x).double().log_softmax(1) for x in images.split(128)])


def _scaled(table: Table) -> np.ndarray:
    """Logarithms of all entries, those of dense aside about 0 on the average."""
    flat = np.concatenate(table)
    logs = np.log(np.maximum(flat, 1e-12))
    return logs - logs[flat > 0].mean()


def spearman(predicted: np.ndarray, images: np.ndarray) -> str:
    """Of a prediction [k] with the mean over images of KL [k, images], with its interval."""
    rng, count = np.random.default_rng(0), images.shape[1]
    draws = rng.multinomial(count, np.full(count, 1 / count), 1000) / count
    ranks = rankdata(predicted)

    def rho(means: np.ndarray) -> float:
        return float(np.corrcoef(ranks, rankdata(means))[0, 1])

    low, high = np.quantile([rho(images @ w) for w in draws], [0.025, 0.975])
    return f"{rho(images.mean(1)):.3f} ({low:.3f} to {high:.3f})"


def change(found: np.ndarray, base: np.ndarray) -> str:
    """Mean KL, and its change against `base` in percent with the paired interval."""
    rng, count = np.random.default_rng(0), len(found)
    draws = rng.multinomial(count, np.full(count, 1 / count), 1000)
    low, high = np.quantile(100 * ((draws @ found) / (draws @ base) - 1), [0.025, 0.975])
    by = 100 * (found.mean() / base.mean() - 1)
    return f"{found.mean():.4f} ({by:+.1f} %: {low:+.1f} to {high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("scratch/tables"))
    parser.add_argument("--levels", default="unstr-0.10..0.99*0.7")
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--speedups", nargs="*", type=float, default=[2.0, 3.0, 4.0, 6.0, 8.0])
    parser.add_argument("--profiles", type=int, default=200)
    parser.add_argument("--some", type=int, default=512)
    parser.add_argument("--judged", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.errors, options.evaluations, options.seeds = "layer", 1, [0]
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    job = reference_job(options, 0.25)
    levels = job.database.model_copy(update={"levels": ("dense", options.levels)})
    job = job.model_copy(update={"database": levels})
    with TerminalProgress() as progress, prepare(job, progress) as problem:
        report(Bench(options, problem, progress), options)


def report(bench: Bench, options: argparse.Namespace) -> None:
    """Print all, the cheapest first."""
    tables = {name: bench.table(name) for name in options.tables}
    unit = bench.seconds_of_a_pass()
    for name in tables:
        print(f"{name:8} {bench.seconds(name) / unit:8.1f} forward passes")
    for speedup in options.speedups:
        found = {}
        for name, table in tables.items():
            best = milp(replace(bench.space(speedup), errors=table)).candidate
            found[name] = np.array(
                bench.keep(
                    f"judged {best}",
                    lambda c=best: bench.kl(c, bench.judged, bench.tuning).tolist(),  # type: ignore[misc]
                )
            )
        base = found.get("loss", next(iter(found.values())))
        for name, kl in found.items():
            print(f"{speedup:g}x {name:8} KL {change(kl, base)}", flush=True)
    for what, candidates, tuning in (
        ("single levels", bench.singles(), None),
        ("profiles", bench.near(list(tables.values()), 4.0), bench.tuning[: options.some]),
    ):
        images = bench.kls(what, candidates, tuning)
        for name, table in tables.items():
            sums = [sum(row[i] for row, i in zip(table, c, strict=True)) for c in candidates]
            print(f"{what}: {name:8} {spearman(np.array(sums), images)}", flush=True)


if __name__ == "__main__":
    main()
