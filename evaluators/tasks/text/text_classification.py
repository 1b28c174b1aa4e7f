"""Text classification: the class of a text, or of two that belong together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apportion.compressors.calibration import call
from apportion.compressors.errors import DataError, ModelError
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data import forms
from apportion.evaluators.data.dataset import Dataset
from apportion.evaluators.data.text.ragged import values
from apportion.evaluators.tasks.chance import check_better_than_chance
from apportion.evaluators.tasks.distribution import Distribution
from apportion.evaluators.tasks.outputs import field
from apportion.evaluators.tasks.task import Metric
from apportion.evaluators.tasks.text import softmax
from apportion.evaluators.tasks.text.tokens import Batch, TextTask

_FEW = 8
"""Texts that are tried with padding and without."""
_ROUNDING = 1e-3
"""By how much their logits may differ, as a share of the largest."""


class TextClassification(TextTask):
    """One label per text (evaluators/data/forms.py, CLASSES); the outputs have `logits`
    [n, classes]."""

    metric = Metric("accuracy", "%", higher_is_better=True, tolerance=0.1, digits=".2f")
    kind = "text-classification"
    form = forms.CLASSES
    auto = "AutoModelForSequenceClassification"

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Cross-entropy in nats."""
        logits = _logits(outputs)
        return softmax.nll(logits, softmax.every(logits), batch["labels"])

    def reference(self, outputs: Any, batch: Batch) -> softmax.Kept:  # noqa: ARG002
        logits = _logits(outputs)
        return softmax.kept(logits, softmax.every(logits))

    def divergence(self, outputs: Any, dense: softmax.Kept, batch: Batch) -> Tensor:  # noqa: ARG002
        """KL(dense || outputs) in nats."""
        logits = _logits(outputs)
        return softmax.kl(logits, softmax.every(logits), dense)

    def distributions(self, outputs: Any, batch: Batch) -> list[Distribution]:  # noqa: ARG002
        logits = _logits(outputs)
        return [Distribution(logits, logits.new_ones(len(logits)))]

    def error(self, outputs: Any, batch: Batch) -> Tensor:
        """1 for a wrong answer."""
        return (_logits(outputs).argmax(1) != batch["labels"]).double()

    def measure(self, rows: Tensor) -> float:
        """The share of right answers in percent."""
        return 100.0 * float((1 - rows).sum()) / len(rows)

    def distance(self, outputs: Any, dense: Any, batch: Batch) -> Tensor:  # noqa: ARG002
        return F.mse_loss(_logits(outputs), _logits(dense))

    def distill(self, outputs: Any, dense: Any, batch: Batch, temperature: float) -> Tensor:  # noqa: ARG002
        found, wanted = _logits(outputs) / temperature, _logits(dense) / temperature
        rows = softmax.every(found)
        return softmax.kl(found, rows, softmax.kept(wanted, rows)).mean() * temperature**2

    def supervise(self, outputs: Any, batch: Batch, smoothing: float) -> Tensor:
        return F.cross_entropy(_logits(outputs), batch["labels"], label_smoothing=smoothing)

    def check(self, outputs: Any, batch: Batch, dataset: Dataset, what: str, model: str) -> None:
        """Every label must be one of the outputs."""
        logits = _logits(outputs)
        if logits.dim() != 2:
            raise ModelError(
                f"model {model!r} must give logits [n, classes] for {self.kind}, and gives "
                f"{list(logits.shape)}"
            )
        found = values(dataset, "labels")
        labels = torch.as_tensor(batch["labels"] if found is None else found)
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= logits.shape[1]:
            raise DataError(
                "workload.data.label",
                f"{what} labels must lie in 0..{logits.shape[1] - 1} for model {model!r}; the "
                f"highest is {highest}, the lowest {lowest}",
            )

    def check_dense(
        self, model: nn.Module, test: Dataset, name: str, progress: Progress = silent
    ) -> None:
        """The same with padding and without, and better than chance, where there are enough texts
        to tell."""
        self._check_padding(model, test, name)

        def answer(batch: Batch) -> tuple[Tensor, Tensor]:
            return batch["labels"], _logits(self.forward(model, batch)).argmax(1)

        check_better_than_chance(answer, test, name, progress, "texts")

    def _check_padding(self, model: nn.Module, test: Dataset, name: str) -> None:
        """Decoders read the class off the last token that is not their own padding: with another
        token for it they would read it off the padding. Raises DataError."""
        inputs = self.inputs(test.subset(range(min(_FEW, len(test)))).batch)
        mask = inputs["attention_mask"]
        if bool((mask[:, 1:] > mask[:, :-1]).any()):
            return  # padding that does not stand behind the texts is not taken off
        order = mask.sum(1).argsort(stable=True)
        with torch.no_grad():
            padded = _logits(call(model, inputs))[order]
            alone = torch.cat([_logits(call(model, part)) for part in self.unpadded(inputs)])
        if float((padded - alone).abs().max()) > _ROUNDING * float(alone.abs().max()):
            raise DataError(
                "workload.data.tokenizer",
                f"model {name!r} gives other logits for a text when padding follows it: its "
                "configuration (pad_token_id) must name the tokenizer's token for padding",
            )


def _logits(outputs: Any) -> Tensor:
    return field(outputs, "logits")
