"""Whether a written model is the one that it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apportion.compressors.errors import OutputError
from apportion.compressors.progress import Progress, silent
from apportion.compressors.threads import device_for
from apportion.evaluators.data import trees
from apportion.evaluators.rewriting.processor import instructions
from apportion.evaluators.workloads.evaluate import evaluate
from apportion.search.export.compressed_model import CompressedModel
from apportion.search.export.formats import Format, Runner


def verify(
    form: Format,
    subject: CompressedModel,
    path: Path,
    value: float,
    shown: Path,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Load what was written in its runtime, run it, and compare it with the model.

    Args:
        form: its format.
        subject: the model.
        path: where it was written.
        value: the model's value of the task's metric on test data.
        shown: the path that messages name.
        progress: told of samples.

    Returns:
        `bytes`; `largest_difference` of the outputs on calibration data; under the metric's name
        its value on test data; and the instructions of the `processor` that ran it.

    Raises:
        OutputError: outputs or metric are not the model's.
    """
    workload, metric = subject.problem.workload, subject.problem.workload.task.metric
    task = workload.task
    run, there = form.load(subject, path), instructions()
    largest = scale = 0.0
    with torch.inference_mode():
        for batch in subject.samples():
            expected = trees.tensors(task.forward(subject.model, batch))
            found = trees.tensors(task.forward(run, batch))
            if [x.shape for x in found] != [x.shape for x in expected]:
                raise OutputError(shown, f"{form.runtime} gives outputs of other shapes ({there})")
            for one, other in zip(found, expected, strict=True):
                if not torch.equal(one.isnan(), other.isnan()):
                    raise OutputError(
                        shown, f"{form.runtime} gives NaN where the model does not ({there})"
                    )
                largest = max(largest, _difference(one.double(), other.double()))
                scale = max(scale, _size(other.double()))
    if form.tolerance is not None and not largest <= form.tolerance * scale:
        raise OutputError(
            shown,
            f"{form.runtime} gives outputs that differ by up to {largest:.3g}, of {scale:.3g} "
            f"({there})",
        )
    device = device_for(subject.problem.job.workers.gpus) if form.on_device else "cpu"
    with running(run, device):
        measured = evaluate(workload, run, device, progress, f"test {path.name}")
    if not metric.agree(measured, value):
        raise OutputError(
            shown,
            f"{form.runtime} gives {metric.text(measured)} test {metric.name} instead of "
            f"{metric.text(value)}, from which it may differ by {metric.allowed(value):.2g} "
            f"({there})",
        )
    return {
        "bytes": form.size(path),
        "largest_difference": largest,
        metric.name: measured,
        "processor": there,
    }


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest of two tensors that have NaN and infinities at the same places, or infinity."""
    gap = torch.where((one == other) | one.isnan(), 0.0, (one - other).abs())
    return float(gap.max()) if gap.numel() else 0.0


def _size(values: Tensor) -> float:
    """The largest number."""
    numbers = values[values.isfinite()].abs()
    return float(numbers.max()) if numbers.numel() else 0.0


@contextmanager
def running(model: Runner, device: str) -> Iterator[None]:
    """The model on `device` while this lasts: what is exported holds CPU tensors."""
    if device == "cpu" or not isinstance(model, nn.Module):
        yield
        return
    model.to(device)
    try:
        yield
    finally:
        model.cpu()
