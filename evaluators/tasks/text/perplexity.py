"""What language models of both kinds share: tokens that are asked for, and perplexity."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apportion.compressors.errors import DataError, ModelError
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data.dataset import Dataset
from apportion.evaluators.tasks.distribution import Distribution
from apportion.evaluators.tasks.outputs import field
from apportion.evaluators.tasks.task import Metric
from apportion.evaluators.tasks.text import softmax
from apportion.evaluators.tasks.text.tokens import Batch, TextTask

log = logging.getLogger(__name__)

_TRIED = 8
"""Texts that the dense model is tried on."""
_MOST = 700.0
"""Nats per token above which a perplexity is no float64."""


class LanguageModel(TextTask):
    """Tokens [n, length] some of which are asked for; the outputs have `logits` [n, length, tokens]
    of a vocabulary. Values of a sample are means over its own tokens, the metric is over all
    tokens."""

    metric = Metric(
        # of a model that compression broke it may be millions
        *("perplexity", ""),
        higher_is_better=False,
        tolerance=0.05,
        digits=".3f",
        relative=2e-3,
    )

    @abstractmethod
    def asked(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Positions whose logits count, bool [n, length], and the tokens that are right there, in
        order [m]."""

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Cross-entropy in nats, averaged over the sample's tokens."""
        return softmax.by_sample(*self._nll(outputs, batch))

    def reference(self, outputs: Any, batch: Batch) -> softmax.Kept:
        """Of the positions that count, the largest logits."""
        return softmax.kept(_logits(outputs), self.asked(batch)[0])

    def divergence(self, outputs: Any, dense: softmax.Kept, batch: Batch) -> Tensor:
        """KL(dense || outputs) in nats, averaged over the sample's tokens."""
        where = self.asked(batch)[0]
        return softmax.by_sample(softmax.kl(_logits(outputs), where, dense), where)

    def distributions(self, outputs: Any, batch: Batch) -> list[Distribution]:
        where = self.asked(batch)[0]
        return [Distribution(_logits(outputs), where / where.sum(1, keepdim=True).clamp_min(1))]

    def error(self, outputs: Any, batch: Batch) -> Tensor:
        """The perplexity of the sample."""
        return self.loss(outputs, batch).clamp_max(_MOST).exp()

    def rows(self, outputs: Any, batch: Batch) -> Tensor:
        """The sample's sum of nats, and its tokens."""
        values, where = self._nll(outputs, batch)
        tokens = where.flatten(1).sum(1)
        return torch.stack([softmax.by_sample(values, where) * tokens, tokens.double()], 1)

    def measure(self, rows: Tensor) -> float:
        """e to the mean nats of a token."""
        nats, tokens = rows.sum(0).tolist()
        return math.exp(min(nats / tokens, _MOST)) if not math.isnan(nats) else math.nan

    def distance(self, outputs: Any, dense: Any, batch: Batch) -> Tensor:
        where = self.asked(batch)[0]
        return F.mse_loss(_logits(outputs)[where], _logits(dense)[where])

    def distill(self, outputs: Any, dense: Any, batch: Batch, temperature: float) -> Tensor:
        where = self.asked(batch)[0]
        kept = softmax.kept(_logits(dense) / temperature, where)
        value = softmax.kl(_logits(outputs) / temperature, where, kept)
        return value.mean() * temperature**2

    def supervise(self, outputs: Any, batch: Batch, smoothing: float) -> Tensor:
        where, wanted = self.asked(batch)
        return F.cross_entropy(_logits(outputs)[where], wanted, label_smoothing=smoothing)

    def check(self, outputs: Any, batch: Batch, dataset: Dataset, what: str, model: str) -> None:  # noqa: ARG002
        """Logits for every token, of a vocabulary that has all of them."""
        found, shape = _logits(outputs), batch["input_ids"].shape
        if found.dim() != 3 or found.shape[:2] != shape:
            raise ModelError(
                f"model {model!r} must give logits {[*shape, 'tokens']} for {self.kind}, and gives "
                f"{list(found.shape)}"
            )
        where, wanted = self.asked(batch)
        if not bool(where.flatten(1).any(1).all()):
            raise DataError("workload.data", f"a {what} sample asks for no token")
        if int(wanted.max()) >= found.shape[2]:
            raise DataError(
                "workload.data.tokenizer",
                f"the {what} texts have token {int(wanted.max())}, and model {model!r} gives "
                f"logits of {found.shape[2]} tokens: it is not this model's tokenizer",
            )

    def check_dense(
        self, model: nn.Module, test: Dataset, name: str, progress: Progress = silent
    ) -> None:
        """A warning where it is worse than guessing."""
        rows, tokens = [], 1
        with torch.no_grad():
            for batch in test.subset(range(min(_TRIED, len(test)))).batches(1):
                outputs = self.forward(model, batch)
                rows.append(self.rows(outputs, batch))
                tokens = _logits(outputs).shape[-1]
                progress("try the dense model", len(rows), min(_TRIED, len(test)))
        if (found := self.measure(torch.cat(rows))) > tokens:
            log.warning(
                "the dense model %r has a perplexity of %.4g on test texts, worse than guessing "
                "among its %d tokens: the tokenizer may not be the model's, or the weights not "
                "those of a trained model",
                name,
                found,
                tokens,
            )

    def _nll(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        where, wanted = self.asked(batch)
        return softmax.nll(_logits(outputs), where, wanted), where


def _logits(outputs: Any) -> Tensor:
    return field(outputs, "logits")
