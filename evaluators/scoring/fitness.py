"""What a search minimises, by name: the task's loss, the divergence from the dense model's outputs,
or the task's metric as an error. Lower is better."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from apportion.compressors.errors import UnknownNameError
from apportion.evaluators.data.dataset import Batch
from apportion.evaluators.tasks.task import Outputs, Task

Criterion = Callable[[Task, Outputs, Batch, Outputs], Tensor]


def _loss(task: Task, outputs: Outputs, batch: Batch, _dense: Outputs) -> Tensor:
    return task.loss(outputs, batch)


def _kl(task: Task, outputs: Outputs, batch: Batch, dense: Outputs) -> Tensor:
    return task.divergence(outputs, dense, batch)


def _error(task: Task, outputs: Outputs, batch: Batch, _dense: Outputs) -> Tensor:
    return task.error(outputs, batch)


CRITERIA: dict[str, Criterion] = {"loss": _loss, "kl": _kl, "error": _error}
"""Name -> function of (task, outputs, batch, the dense model's outputs) to float64 [n]."""
MEANINGS = {
    "loss": "the task's loss",
    "kl": "the task's divergence from the dense model's outputs",
    "error": "the task's metric as an error",
}
"""Name -> what it is, for reports."""


def criterion(name: str) -> Criterion:
    """Raises UnknownNameError."""
    if name not in CRITERIA:
        raise UnknownNameError("fitness", name, CRITERIA)
    return CRITERIA[name]


def needs_dense_outputs(name: str) -> bool:
    """Where it is False, a criterion may be given None for the dense model's outputs."""
    return name == "kl"
