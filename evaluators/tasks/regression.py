"""Regression: one or several numbers per sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from apportion.compressors.errors import DataError, ModelError
from apportion.evaluators.data.dataset import Batch, Dataset, in_memory
from apportion.evaluators.tasks.outputs import field
from apportion.evaluators.tasks.targets import LABELS, TargetsTask, wanted
from apportion.evaluators.tasks.task import Metric, Outputs


class Regression(TargetsTask):
    """Squared errors, averaged over a sample's targets; the metric is their root over all samples.

    A batch is (inputs, targets float [n] or [n, k]), where inputs is a tree, or a dict with the
    targets as `labels`. The outputs are numbers [n] or [n, k], or have them as `logits`."""

    metric = Metric(
        # its scale is the targets' own
        *("root mean squared error", ""),
        higher_is_better=False,
        tolerance=1e-6,
        relative=1e-2,
    )
    kind = "regression"

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The mean squared error of each sample."""
        return _squared(_numbers(outputs), _table(wanted(batch)))

    def divergence(self, outputs: Outputs, dense: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        """The mean squared difference of each sample's outputs."""
        return _squared(_numbers(outputs), _numbers(dense))

    def error(self, outputs: Outputs, batch: Batch) -> Tensor:
        return self.loss(outputs, batch)

    def reference(self, outputs: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        """The numbers alone."""
        return _numbers(outputs)

    def measure(self, rows: Tensor) -> float:
        return float(rows.mean().sqrt())

    def distance(self, outputs: Outputs, dense: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        return F.mse_loss(_numbers(outputs), _numbers(dense))

    def check(
        self, outputs: Outputs, batch: Batch, dataset: Dataset, what: str, model: str
    ) -> None:
        """As many outputs as targets, and targets that are numbers."""
        if not (isinstance(batch, dict) and LABELS in batch) and not isinstance(batch, tuple):
            raise DataError(
                "workload.data",
                f"task regression: {what} batches must be (inputs, targets) or a dict with "
                f"{LABELS!r}",
            )
        found, targets = _numbers(outputs), _table(wanted(batch))
        if found.dim() != 2:
            raise ModelError(
                f"model {model!r} must give numbers [N] or [N, targets] for regression, gave "
                f"{list(found.shape)}"
            )
        if found.shape != targets.shape:
            raise DataError(
                "workload.data",
                f"{what} data have {targets.shape[1]} targets per sample, model {model!r} gives "
                f"{found.shape[1]} numbers",
            )
        if not bool(torch.isfinite(wanted(in_memory(dataset, batch))).all()):
            raise DataError("workload.data", f"{what} targets hold NaN or infinity")


def _numbers(outputs: Outputs) -> Tensor:
    return _table(field(outputs, "logits", 0))


def _table(values: Tensor) -> Tensor:
    """[n] as [n, 1]."""
    return values[:, None] if values.dim() == 1 else values


def _squared(found: Tensor, target: Tensor) -> Tensor:
    return (found.double() - target.double()).square().mean(1)
