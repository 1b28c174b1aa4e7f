"""The metric of a model on a workload's test data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from apportion.compressors.progress import Progress, silent
from apportion.compressors.threads import full_precision
from apportion.evaluators.data import trees
from apportion.evaluators.workloads.checks import measured
from apportion.evaluators.workloads.workload import Workload


def evaluate(
    workload: Workload,
    run: Callable[..., Any],
    device: str = "cpu",
    progress: Progress = silent,
    what: str = "test",
) -> float:
    """The value of the task's metric on the test data, in its unit.

    Args:
        workload: gives task, test data and batch size.
        run: called as the workload's model is: that model as it is (eval mode), or an exported one
            in its runtime.
        device: where `run` computes.
        progress: told of samples.
        what: the work, for progress.

    Raises:
        ConfigurationError: the metric fails.
    """
    task, test, rows, seen = workload.task, workload.test, [], 0
    with torch.inference_mode(), full_precision():
        for batch in test.batches(workload.batch_size):
            batch = trees.placed(batch, device)
            rows.append(task.rows(task.forward(run, batch), batch).cpu())
            seen += task.samples(batch)
            progress(what, seen, len(test))
    return measured(task, torch.cat(rows))
