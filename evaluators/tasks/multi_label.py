"""Multi-label classification: any number of labels per sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from apportion.compressors.errors import DataError, ModelError
from apportion.evaluators.data.dataset import Batch, Dataset, in_memory
from apportion.evaluators.tasks import divergences
from apportion.evaluators.tasks.distribution import Distribution
from apportion.evaluators.tasks.outputs import field
from apportion.evaluators.tasks.targets import TargetsTask, wanted
from apportion.evaluators.tasks.task import Metric, Outputs


class MultiLabel(TargetsTask):
    """Each label is there or not, on its own.

    A batch is (inputs, labels [n, k] of 0 and 1), where inputs is a tree, or a dict with those as
    `labels`. The outputs are logits [n, k], or have them as `logits`; a label is found where its
    logit is above 0. The metric is the F1 of each label over all samples, averaged over the labels
    (torchmetrics' multilabel_f1_score, macro)."""

    metric = Metric("macro F1", "%", higher_is_better=True, tolerance=0.1, digits=".2f")
    kind = "multi-label"

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Binary cross-entropy in nats, averaged over the labels."""
        target = wanted(batch).double()
        made = _logits(outputs).double()
        return F.binary_cross_entropy_with_logits(made, target, reduction="none").mean(1)

    def divergence(self, outputs: Outputs, dense: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        """KL(dense || outputs) in nats, averaged over the labels."""
        return divergences.binary(_logits(outputs), _logits(dense)).mean(1)

    def reference(self, outputs: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        """The logits alone."""
        return _logits(outputs)

    def distributions(self, outputs: Outputs, batch: Batch) -> list[Distribution]:  # noqa: ARG002
        logits = _logits(outputs)
        weight = torch.full_like(logits, 1 / logits.shape[1], requires_grad=False)
        return [Distribution(logits, weight, binary=True)]

    def error(self, outputs: Outputs, batch: Batch) -> Tensor:
        """1 - F1 of the sample's labels; 0 where none is wanted and none found."""
        right, extra, missed = (part.sum(1) for part in _counts(outputs, batch))
        wrong = extra + missed
        return wrong / (2 * right + wrong).clamp_min(1)

    def rows(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Labels that are found rightly, found wrongly, and missed: [n, 3 k]."""
        return torch.cat(_counts(outputs, batch), 1)

    def measure(self, rows: Tensor) -> float:
        """F1 in percent, averaged over the labels; 0 for a label that never occurs."""
        right, extra, missed = rows.sum(0).chunk(3)
        return 100.0 * float((2 * right / (2 * right + extra + missed).clamp_min(1)).mean())

    def distance(self, outputs: Outputs, dense: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        return F.mse_loss(_logits(outputs), _logits(dense))

    def check(
        self, outputs: Outputs, batch: Batch, dataset: Dataset, what: str, model: str
    ) -> None:
        """As many logits as labels, which are 0 or 1."""
        found, labels = _logits(outputs), wanted(batch)
        if found.dim() != 2:
            raise ModelError(
                f"model {model!r} must give logits [N, labels] for multi-label, gave "
                f"{list(found.shape)}"
            )
        if labels.shape != found.shape:
            raise DataError(
                "workload.data",
                f"{what} labels have the shape {list(labels.shape)} where model {model!r} gives "
                f"logits {list(found.shape)}; needed is 0 or 1 for each of them",
            )
        labels = wanted(in_memory(dataset, batch))
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise DataError("workload.data", f"{what} labels must be 0 or 1 for multi-label")


def _logits(outputs: Outputs) -> Tensor:
    return field(outputs, "logits", 0)


def _counts(outputs: Outputs, batch: Batch) -> list[Tensor]:
    found, there = _logits(outputs) > 0, wanted(batch) > 0.5
    return [part.double() for part in (found & there, found & ~there, ~found & there)]
