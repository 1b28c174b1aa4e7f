"""Whether a written model is the one that it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apportion.compressors.errors import OutputError
from apportion.compressors.progress import Progress
from apportion.compressors.threads import device_for
from apportion.evaluators.rewriting.processor import instructions
from apportion.evaluators.workloads.data import Split
from apportion.search.export.compressed_model import CompressedModel
from apportion.search.export.formats import Format, Packed, Runner, Safetensors

_SAME = 0.1
"""Points of test accuracy by which an exported model may differ from the one that it stands for."""


def verify(
    form: Format,
    subject: CompressedModel,
    path: Path,
    accuracy: float,
    shown: Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Load what was written at `path` in its runtime and run it: its `bytes`, the
    `largest_difference` of its outputs on calibration inputs, its test `accuracy`, and the
    instructions of the `processor` that ran it. Raises OutputError, with the path `shown`, where
    those are not the model's."""
    run, there = form.load(subject, path), instructions()
    largest = scale = 0.0
    with torch.inference_mode():
        for inputs in subject.samples():
            expected = subject.model(inputs)
            largest = max(largest, float((run(inputs) - expected).abs().max()))
            scale = max(scale, float(expected.abs().max()))
    if form.tolerance is not None and not largest <= form.tolerance * scale:
        raise OutputError(
            shown,
            f"{form.runtime} gives outputs that differ by up to {largest:.3g}, of {scale:.3g} "
            f"({there})",
        )
    workload = subject.problem.workload
    device = (
        device_for(subject.problem.job.workers.gpus)
        if isinstance(form, (Safetensors, Packed))
        else "cpu"
    )
    with running(run, device) as runner:
        found = test_accuracy(
            runner, workload.test, workload.batch_size, progress, f"test {path.name}"
        )
    if abs(found - accuracy) > _SAME:
        raise OutputError(
            shown,
            f"{form.runtime} gives {found:.2f} % test accuracy instead of {accuracy:.2f} % "
            f"({there})",
        )
    return {
        "bytes": path.stat().st_size,
        "largest_difference": largest,
        "accuracy": found,
        "processor": there,
    }


@contextmanager
def running(model: Runner, device: str) -> Iterator[Runner]:
    """The model, on `device` while this lasts: what is exported holds CPU tensors. Takes and gives
    CPU tensors itself."""
    if device == "cpu" or not isinstance(model, nn.Module):
        yield model
        return
    model.to(device)
    try:
        yield lambda inputs: model(inputs.to(device)).cpu()
    finally:
        model.cpu()


def test_accuracy(
    run: Runner, test: Split, batch_size: int, progress: Progress | None = None, what: str = "test"
) -> float:
    """Accuracy of a model (as it is, eval mode) on `test` in percent; higher is better."""
    right = seen = 0
    with torch.inference_mode():
        for inputs, labels in test.batches(batch_size):
            right += int((run(inputs).argmax(1) == labels).sum())
            seen += len(labels)
            if progress:
                progress(what, seen, len(test))
    return 100.0 * right / seen
