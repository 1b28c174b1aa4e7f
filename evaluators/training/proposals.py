"""Proposals: smaller models that are trained for a short while and compared."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from apportion.compressors.corrections import correct, possible
from apportion.compressors.threads import device_for, full_precision, torch_threads
from apportion.evaluators.data import trees
from apportion.evaluators.training.config import FinetuneConfig
from apportion.evaluators.training.recovery import Recovery
from apportion.evaluators.workloads.evaluate import evaluate
from apportion.evaluators.workloads.workload import Workload


@dataclass(frozen=True)
class Judged:
    """A proposal after its training: the task's metric and loss (lower is better) on data that it
    was not trained on, and its state dict."""

    metric: float
    loss: float
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Course:
    """What every proposal of an iteration goes through.

    Args:
        workload: `train`, for training; `test`, for judging. Its model is the teacher.
        config: of the training; None: none.
        retune: whether batch-norm's statistics are taken anew before, on the calibration data.
        seed: of the training.
        threads: that torch computes on.
        gpus: of a worker.
    """

    workload: Workload
    config: FinetuneConfig | None
    retune: bool
    seed: int
    threads: int = 1
    gpus: float = 0

    def judged(self, model: nn.Module) -> Judged:
        """The same for the same model, wherever it runs; `model` is left as it is."""
        # Copies: what comes out of an object store cannot be written to.
        made, workload = copy.deepcopy(model), self.workload
        teacher = copy.deepcopy(workload.model).eval().requires_grad_(False)
        device = device_for(self.gpus)
        with torch_threads(self.threads):
            if self.retune:
                data = workload.correction_pass(
                    lambda: workload.calibration.batches(workload.batch_size)
                )
                for name in possible(["batchnorm"], made):
                    correct(name, made, data, {})
            if self.config is not None:
                training = Recovery(
                    task=workload.task,
                    model=made,
                    dense=teacher,
                    what={},
                    batch_size=workload.batch_size,
                    seed=self.seed,
                    checkpoints=_Nowhere(),
                    key="",
                    device=device,
                )
                training.finetune(workload.train, self.config)
            made = made.to(device).eval()
            metric, loss = evaluate(workload, made, device), self._loss(made, device)
        state = {name: value.detach().clone() for name, value in made.cpu().state_dict().items()}
        return Judged(metric, loss, state)

    def _loss(self, model: nn.Module, device: str) -> float:
        task, total, seen = self.workload.task, 0.0, 0
        with torch.inference_mode(), full_precision():
            for batch in self.workload.test.batches(self.workload.batch_size):
                own = trees.placed(batch, device)
                total += float(task.loss(task.forward(model, own), own).sum())
                seen += task.samples(own)
        return total / seen


class _Nowhere:
    """Keeps no states: a short training begins again."""

    def write(self, name: str, content: dict[str, Any]) -> None:
        pass

    def read(self, name: str) -> dict[str, Any] | None:  # noqa: ARG002
        return None
