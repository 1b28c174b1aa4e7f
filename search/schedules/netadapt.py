"""NetAdapt (Yang et al. 2018, algorithm 1): again and again every channel group alone is made
smaller, each of these proposals is trained for a short while, and the best one by metric is kept,
until the budgets hold."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import nn

from apportion.compressors.errors import BudgetError
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.progress import Progress, silent
from apportion.compressors.threads import device_for
from apportion.db.files import write_atomically, write_json
from apportion.db.layers import format
from apportion.evaluators.data.files import local_file
from apportion.evaluators.models.build import build_model, read_shapes
from apportion.evaluators.rewriting.narrow import changed_shapes
from apportion.evaluators.tasks.metric import Metric
from apportion.evaluators.training.proposals import Judged
from apportion.evaluators.workloads.evaluate import evaluate
from apportion.evaluators.workloads.workload import Workload, model_fingerprint
from apportion.search.export.compressed_model import SHAPES
from apportion.search.jobs.job import Job
from apportion.search.runs.workers import Workers
from apportion.search.schedules.candidates import Candidates, costs_of
from apportion.search.schedules.judging import Judging
from apportion.search.schedules.record import Record, made
from apportion.search.schedules.training import forget, train

WEIGHTS = "model.safetensors"
_KEPT = "proposals"


class NetAdapt:
    def __init__(
        self, job: Job, workload: Workload, record: Record, progress: Progress = silent
    ) -> None:
        assert job.schedule is not None
        self._job, self._schedule, self._progress = job, job.schedule, progress
        self._workload, self._record = workload, record
        self._dense: nn.Module = workload.model
        self._costs = costs_of(self._dense, find_layers(self._dense, workload.traced_pass()))
        self._final = {own.metric: own.bound(self._costs[own.metric]) for own in job.bounds()}
        self._judging = Judging(job, workload, progress)

    def run(self) -> list[str]:
        """Gives the names of the final model's files. Raises BudgetError where the budgets cannot
        be met."""
        record = self._record
        record.note(dense={metric: self._costs[metric] for metric in self._final})
        model, costs = self._dense, self._costs
        with Workers(self._job.workers) as workers:
            for step in range(1, 1 << 30):
                if self._meets(costs):
                    break
                folder = record.folder(step)
                if not self._is_done(step):
                    del record.steps[step - 1 :]
                    record.done(self._iteration(step, model, costs, workers))
                shutil.rmtree(folder / _KEPT, ignore_errors=True)
                model, costs = self._loaded(folder), record.steps[step - 1]["costs"]
        return self._finished(model, step)

    def _meets(self, costs: Mapping[str, float]) -> bool:
        return all(costs[metric] <= bound for metric, bound in self._final.items())

    def _is_done(self, step: int) -> bool:
        there = len(self._record.steps) >= step and "group" in self._record.steps[step - 1]
        folder = self._record.folder(step)
        return there and (folder / WEIGHTS).exists() and (folder / SHAPES).exists()

    def _loaded(self, folder: Path) -> nn.Module:
        name = self._job.workload.name
        return build_model(name, str(folder / WEIGHTS), self._workload.task, str(folder / SHAPES))

    def _iteration(
        self, step: int, model: nn.Module, costs: Mapping[str, float], workers: Workers
    ) -> dict[str, Any]:
        own = self._schedule
        lowered = own.step * own.decay ** (step - 1)
        bounds = {
            metric: max(final, costs[metric] - lowered * self._costs[metric])
            for metric, final in self._final.items()
            if costs[metric] > final
        }
        candidates = Candidates(self._job, replace(self._workload, model=model), self._progress)
        proposals = candidates.proposals(bounds)
        if not proposals:
            metric = next(iter(bounds))
            raise BudgetError(
                metric,
                f"{self._final[metric]:g} is asked, and {costs[metric]:g} is what netadapt comes "
                "to: every channel group has its least size (database.channels)",
            )
        key = format.digest({"key": self._record.content["key"], "model": model_fingerprint(model)})
        judged = self._judging.judged(
            step, self._record.folder(step) / _KEPT, key, candidates, proposals, workers
        )
        metric_of = self._workload.task.metric
        best = min(range(len(judged)), key=lambda i: _rank(judged[i], metric_of))
        made_ = candidates.model(proposals[best])
        made_.load_state_dict(judged[best].state)
        self._write(made_, self._record.folder(step))
        data = self._workload.traced_pass()
        return {
            "step": step,
            "budgets": bounds,
            **self._costed(costs_of(made_, find_layers(made_, data))),
            "group": proposals[best].group,
            "size": proposals[best].size,
            "metric": metric_of.to_json(),
            "measured_on": self._judging.source,
            metric_of.name: {"proposal": judged[best].metric},
            "proposals": [
                {**asdict(p), metric_of.name: j.metric, "loss": j.loss}
                for p, j in zip(proposals, judged, strict=True)
            ],
            "files": [WEIGHTS, SHAPES],
        }

    def _costed(self, costs: Mapping[str, float]) -> dict[str, Any]:
        shares = {metric: costs[metric] / self._costs[metric] for metric in self._final}
        return {"costs": {metric: costs[metric] for metric in self._final}, "of_dense": shares}

    def _finished(self, model: nn.Module, step: int) -> list[str]:
        """The long training, and the final files."""
        record, out = self._record, self._record.out
        files = [WEIGHTS, SHAPES]
        if len(record.steps) == step and all((out / name).exists() for name in files):
            return files
        del record.steps[step - 1 :]
        metric, workload, job = self._workload.task.metric, self._workload, self._job
        model = copy.deepcopy(model)  # it may be the dense one
        values = {"dense": self._test(self._dense, "dense")}
        values["adapted"] = self._test(model, "adapted")
        states = out / "training"
        if job.recovery.finetune is not None:
            train(model, self._dense, workload, job, job.recovery.finetune, states, self._progress)
            values["fine-tuned"] = self._test(model, "fine-tuned")
        self._write(model, out)
        kept = {
            "step": step,
            "budgets": self._final,
            **self._costed(costs_of(model, find_layers(model, workload.traced_pass()))),
            "metric": metric.to_json(),
            "measured_on": "test",
            metric.name: values,
            "files": files,
        }
        record.done(kept)
        forget(states)
        return files

    def _test(self, model: nn.Module, what: str) -> float:
        device = device_for(self._job.workers.gpus)
        try:
            return evaluate(
                self._workload, model.to(device).eval(), device, self._progress, f"test {what}"
            )
        finally:
            model.cpu()

    def _write(self, model: nn.Module, folder: Path) -> None:
        """Weights, and the shapes that the model's class is to be given. Raises OutputError."""
        made(folder)
        before = self._job.workload.shapes
        shapes = {} if before is None else read_shapes(local_file(before))
        write_json(folder / SHAPES, {**shapes, **changed_shapes(self._dense, model)})
        marks = {"format": "pt"}
        write_atomically(folder / WEIGHTS, lambda path: save_model(model, str(path), marks))


def _rank(judged: Judged, metric: Metric) -> tuple[float, float]:
    """The best first; of equal metrics the lower loss. What is no number comes last."""
    value = -judged.metric if metric.higher_is_better else judged.metric
    return (
        value if math.isfinite(value) else math.inf,
        judged.loss if math.isfinite(judged.loss) else math.inf,
    )
