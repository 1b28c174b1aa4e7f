"""Image classification: the task of image classifiers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apportion.compressors.errors import DataError, ModelError
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data.augment import AugmentConfig, augment
from apportion.evaluators.data.dataset import Dataset, in_memory
from apportion.evaluators.tasks.chance import check_better_than_chance
from apportion.evaluators.tasks.distribution import Distribution
from apportion.evaluators.tasks.task import Metric, Task

Images = tuple[Tensor, Tensor]
"""Inputs float32 [n, C, H, W], normalised, and labels int64 [n]."""


@runtime_checkable
class Labelled(Protocol):
    """Data that know the labels of all samples without reading these."""

    def label_range(self) -> tuple[int, int]:
        """The lowest and the highest label."""


class ImageClassification(Task):
    """One label per image. A batch is (inputs, labels), the outputs are logits [n, classes]."""

    metric = Metric("accuracy", "%", higher_is_better=True, tolerance=0.1, digits=".2f")
    kind = "image-classification"
    auto = "AutoModelForImageClassification"

    def inputs(self, batch: Images) -> Tensor:
        return batch[0]

    def samples(self, batch: Images) -> int:
        return len(batch[1])

    def loss(self, outputs: Tensor, batch: Images) -> Tensor:
        """Cross-entropy in nats."""
        return F.cross_entropy(outputs.double(), batch[1], reduction="none")

    def divergence(self, outputs: Tensor, dense: Tensor, batch: Images) -> Tensor:  # noqa: ARG002
        """KL(dense || outputs) in nats."""
        target = F.log_softmax(dense.double(), dim=1)
        return F.kl_div(
            F.log_softmax(outputs.double(), dim=1), target, reduction="none", log_target=True
        ).sum(1)

    def distributions(self, outputs: Tensor, batch: Images) -> list[Distribution]:  # noqa: ARG002
        return [Distribution(outputs, outputs.new_ones(len(outputs)))]

    def error(self, outputs: Tensor, batch: Images) -> Tensor:
        """1 for a wrong answer."""
        return (outputs.argmax(1) != batch[1]).double()

    def measure(self, rows: Tensor) -> float:
        """The share of right answers in percent."""
        return 100.0 * float((1 - rows).sum()) / len(rows)

    def distill(self, outputs: Tensor, dense: Tensor, batch: Images, temperature: float) -> Tensor:  # noqa: ARG002
        wanted = (dense / temperature).log_softmax(1)
        found = (outputs / temperature).log_softmax(1)
        return F.kl_div(found, wanted, log_target=True, reduction="batchmean") * temperature**2

    def supervise(self, outputs: Tensor, batch: Images, smoothing: float) -> Tensor:
        return F.cross_entropy(outputs, batch[1], label_smoothing=smoothing)

    def augment(self, batch: Images, config: AugmentConfig, generator: torch.Generator) -> Images:
        """Random crops and mirror images."""
        return augment(batch[0], config, generator), batch[1]

    def check(
        self, outputs: Tensor, batch: Images, dataset: Dataset, what: str, model: str
    ) -> None:
        """Every label must be one of the outputs, of which there is one tensor."""
        if not isinstance(outputs, Tensor) or outputs.dim() != 2:
            raise ModelError(f"model {model!r} must give one tensor [N, classes]")
        classes, labels = outputs.shape[1], in_memory(dataset, batch)[1]
        lowest, highest = (
            dataset.label_range()
            if isinstance(dataset, Labelled)
            else (int(labels.min()), int(labels.max()))
        )
        if lowest < 0 or highest >= classes:
            raise DataError(
                "workload.data",
                f"{what} labels must lie in 0..{classes - 1} for model {model!r}; the highest is "
                f"{highest}, the lowest {lowest}",
            )

    def check_dense(
        self, model: nn.Module, test: Dataset, name: str, progress: Progress = silent
    ) -> None:
        """Better than chance, where there are enough images to tell."""

        def answer(batch: Images) -> tuple[Tensor, Tensor]:
            return batch[1], self.forward(model, batch).argmax(1)

        check_better_than_chance(answer, test, name, progress)

    def key(self) -> dict[str, str]:
        """Nothing: it was the only task before tasks had names."""
        return {}
