"""Sentence similarity: the cosine of two sentences' embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apportion.compressors.errors import ConfigurationError, DataError, ModelError
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data import forms
from apportion.evaluators.data.dataset import Dataset
from apportion.evaluators.data.text.ragged import values
from apportion.evaluators.tasks.outputs import field
from apportion.evaluators.tasks.task import Metric
from apportion.evaluators.tasks.text.tokens import Batch, TextTask, check_tokens, model_inputs

POOLINGS = ("mean", "cls")
_ENOUGH, _MOST = 100, 512
"""Pairs that the dense model is tried on at least and at most."""
_SURE = 2.33
"""Standard deviations above chance: exceeded by chance once in a hundred times."""


class SentenceSimilarity(TextTask):
    """Pairs of sentences and how similar they are (evaluators/data/forms.py, PAIRS). One call of
    the model embeds both: the outputs have `last_hidden_state` [2n, length, width], the first
    sentences before the second.

    Args:
        pooling: how tokens become a sentence's embedding: `mean` of all that are no padding, or
            `cls`, the first one's.
    """

    metric = Metric(
        "Spearman correlation", "", higher_is_better=True, tolerance=0.002, digits=".4f"
    )
    kind = "sentence-similarity"
    form = forms.PAIRS

    def __init__(self, pooling: str = "mean") -> None:
        if pooling not in POOLINGS:
            raise ConfigurationError(
                f"workload.task.pooling: {pooling!r}; valid are {', '.join(POOLINGS)}"
            )
        self.pooling = pooling

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Of both sentences, [2n, length]."""
        pairs = (model_inputs(batch["first"]), model_inputs(batch["second"]))
        return {name: torch.cat([each[name] for each in pairs]) for name in pairs[0]}

    def samples(self, batch: Batch) -> int:
        return len(batch["score"])

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The squared difference of cosine and score: what such models are trained to minimise
        (Reimers & Gurevych 2019, section 3)."""
        return (self._cosine(outputs, batch) - batch["score"].double()).square()

    def reference(self, outputs: Any, batch: Batch) -> Tensor:
        """The embeddings of both sentences, of length 1, float64 [2n, width]."""
        return self._embeddings(outputs, batch)

    def divergence(self, outputs: Any, dense: Tensor, batch: Batch) -> Tensor:
        """1 - cosine to the dense model's embedding, averaged over the two sentences."""
        moved = (self._embeddings(outputs, batch) - dense).square().sum(1) / 2
        return moved.reshape(2, -1).mean(0)

    def error(self, outputs: Any, batch: Batch) -> Tensor:
        """How far the cosine is from the score."""
        return (self._cosine(outputs, batch) - batch["score"].double()).abs()

    def rows(self, outputs: Any, batch: Batch) -> Tensor:
        """Cosine and score."""
        return torch.stack([self._cosine(outputs, batch), batch["score"].double()], 1)

    def measure(self, rows: Tensor) -> float:
        """Spearman's correlation of both; nan where one of them is the same for all."""
        from scipy.stats import rankdata  # takes time to import

        ranks = torch.from_numpy(rankdata(rows.cpu().numpy(), axis=0))
        return float(torch.corrcoef(ranks.T)[0, 1])

    def distance(self, outputs: Any, dense: Any, batch: Batch) -> Tensor:
        """The mean squared difference of embeddings."""
        return F.mse_loss(self._embeddings(outputs, batch), self._embeddings(dense, batch))

    def check_inputs(self, model: nn.Module, dataset: Dataset, what: str, name: str) -> None:
        for side in ("first", "second"):
            check_tokens(model, dataset, what, name, side)

    def check(self, outputs: Any, batch: Batch, dataset: Dataset, what: str, model: str) -> None:
        hidden = field(outputs, "last_hidden_state")
        wanted = self.inputs(batch)["input_ids"].shape
        if hidden.dim() != 3 or hidden.shape[:2] != wanted:
            raise ModelError(
                f"model {model!r} must give hidden states {[*wanted, 'width']} for {self.kind}, "
                f"and gives {list(hidden.shape)}"
            )
        found = values(dataset, "score")
        scores = torch.as_tensor(batch["score"] if found is None else found)
        lowest, highest = float(scores.min()), float(scores.max())
        if lowest < -1 or highest > 1:
            raise DataError(
                "workload.data.scale",
                f"{what} similarities, divided by it, go from {lowest:.4g} to {highest:.4g}; it "
                "must be the highest that there is, so that they are between -1 and 1",
            )

    def check_dense(
        self, model: nn.Module, test: Dataset, name: str, progress: Progress = silent
    ) -> None:
        """Better than chance, where there are enough pairs to tell: of as many unrelated numbers
        the correlation is 0 give or take 1 / sqrt(n - 1)."""
        count = min(len(test), _MOST)
        if count < _ENOUGH:
            return
        chosen = np.random.default_rng(0).permutation(len(test))[:count].tolist()
        rows = []
        with torch.no_grad():
            for batch in test.subset(chosen).batches(_ENOUGH):
                rows.append(self.rows(self.forward(model, batch), batch))
                progress("try the dense model", min(len(rows) * _ENOUGH, count), count)
        found = self.measure(torch.cat(rows))
        if found * (count - 1) ** 0.5 <= _SURE:
            raise DataError(
                "workload.data",
                f"the dense model {name!r} orders {count} test pairs no better than chance would "
                f"(Spearman correlation {found:.3f}): the texts or the column of similarities may "
                "not be the right ones, the tokenizer or `task.pooling` not the model's, or the "
                "weights not those of a trained model",
            )

    def key(self) -> dict[str, str]:
        return super().key() | ({} if self.pooling == "mean" else {"pooling": self.pooling})

    def _cosine(self, outputs: Any, batch: Batch) -> Tensor:
        """float64 [n]."""
        first, second = self._embeddings(outputs, batch).chunk(2)
        return (first * second).sum(1)

    def _embeddings(self, outputs: Any, batch: Batch) -> Tensor:
        hidden = field(outputs, "last_hidden_state").double()
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            mask = self.inputs(batch)["attention_mask"].double()[..., None]
            pooled = (hidden * mask).sum(1) / mask.sum(1)
        return F.normalize(pooled, dim=1)
