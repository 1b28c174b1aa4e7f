"""Whether a model, its data and its task go together: tried on two samples before hours of
work."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from apportion.compressors.errors import ApportionError, ConfigurationError, DataError, first_line
from apportion.evaluators.data import trees
from apportion.evaluators.data.dataset import Batch, Dataset
from apportion.evaluators.tasks.task import Outputs, Task

_NONE = 1e-6
"""Divergence of the dense model from itself that rounding may leave."""


def check_together(model: nn.Module, name: str, task: Task, parts: Mapping[str, Dataset]) -> None:
    """Two samples of every part (by what it is for) must run through `model`, called `name`, and
    the task must give one value for each: test data that do not fit would otherwise only show when
    the search is over. Raises DataError, ModelError, ConfigurationError."""
    for part, dataset in parts.items():
        task.check_inputs(model, dataset, part, name)
        count = min(2, len(dataset))
        batch = dataset.subset(range(count)).batch
        outputs = _run(model, name, task, batch, part)
        task.check(outputs, batch, dataset, part, name)
        _check_values(task, outputs, batch, count)


def check_batch(model: nn.Module, name: str, task: Task, batch: Batch) -> None:
    """More samples, of the calibration data, must run through the model, and have values. Raises
    DataError, ConfigurationError."""
    outputs = _run(model, name, task, batch, "calibration")
    _check_values(task, outputs, batch, len(trees.tensors(batch)[0]))


def _run(model: nn.Module, name: str, task: Task, batch: Batch, part: str) -> Outputs:
    inputs = task.inputs(batch)
    try:
        with torch.no_grad():
            return task.forward(model, batch)
    except ApportionError:
        raise
    except Exception as error:  # whatever the user's model raises on data of the wrong shape
        raise DataError(
            "workload.data",
            f"{part} inputs of shape {trees.shapes(inputs)} do not run through model {name!r}: "
            f"{error}",
        ) from error


def _check_values(task: Task, outputs: Outputs, batch: Batch, count: int) -> None:
    """Raises ConfigurationError."""
    if task.samples(batch) != count:
        raise ConfigurationError(
            f"task {task.identity}: a batch of {count} samples holds {task.samples(batch)} of them "
            "for it"
        )
    values: dict[str, Callable[[], Tensor]] = {
        "loss": lambda: task.loss(outputs, batch),
        "divergence": lambda: task.divergence(outputs, task.reference(outputs, batch), batch),
        "error": lambda: task.error(outputs, batch),
        "rows": lambda: task.rows(outputs, batch)[:, 0],
    }
    for what, value in values.items():
        try:
            found = value()
            shape = list(found.shape)
        except ApportionError:
            raise
        except Exception as error:  # the user's own code
            raise _failed(task, what, error) from error
        if shape != [count]:
            raise ConfigurationError(
                f"task {task.identity}: {what} has the shape {shape} for a batch of {count} "
                f"samples; one value each is needed, [{count}]"
            )
        if what != "rows" and not bool(found.isfinite().all()):
            raise ConfigurationError(
                f"task {task.identity}: {what} of the dense model is not finite for a sample "
                f"({float(found[~found.isfinite()][0])}); labels, inputs or the function are wrong"
            )
        if what != "rows" and float(found.min()) < -_NONE:
            raise ConfigurationError(
                f"task {task.identity}: {what} is {float(found.min()):.3g} for a sample; it must "
                "be 0 or above"
            )
        if what == "divergence" and float(found.abs().max()) > _NONE:
            raise ConfigurationError(
                f"task {task.identity}: the divergence of the dense model from itself is "
                f"{float(found.abs().max()):.3g}; it must be 0"
            )
    measured(task, task.rows(outputs, batch).cpu())


def measured(task: Task, rows: Tensor) -> float:
    """The metric's value from `rows` of samples. Raises ConfigurationError where the task's own
    code fails, or gives what is no number."""
    metric = f"metric {task.metric.name!r}"
    try:
        found = task.measure(rows)
    except ApportionError:
        raise
    except Exception as error:  # the user's own code
        raise _failed(task, metric, error) from error
    if not isinstance(found, int | float):
        raise ConfigurationError(
            f"task {task.identity}: {metric} is a {type(found).__name__}; a number is needed"
        )
    return found


def _failed(task: Task, what: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"task {task.identity}: {what} failed ({first_line(error)})")
