"""Extractive question answering: where in a context the answer stands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from apportion.compressors.errors import ModelError
from apportion.evaluators.data import forms
from apportion.evaluators.data.dataset import Dataset
from apportion.evaluators.tasks.distribution import Distribution
from apportion.evaluators.tasks.outputs import field
from apportion.evaluators.tasks.task import Metric
from apportion.evaluators.tasks.text import softmax
from apportion.evaluators.tasks.text.squad_score import f1
from apportion.evaluators.tasks.text.tokens import Batch, TextTask

_LONGEST = 30
"""Tokens of an answer at most, as in the published evaluations."""


_SIDES = ("start", "end")
_BEST, _NULL, _F1, _EMPTY, _OPTIONAL = 1, 2, 3, 4, 5
"""Columns of `rows`."""


class QuestionAnswering(TextTask):
    """A question with a window of its context (evaluators/data/text/windows.py); the outputs have
    `start_logits` and `end_logits` [n, length]. A sample is a window. The metric gathers the
    windows of each question: the best answer of all of them counts, and in files that have
    questions without answers none, where the model finds that likelier in every window."""

    metric = Metric("F1", "%", higher_is_better=True, tolerance=0.1, digits=".2f")
    kind = "question-answering"
    form = forms.ANSWERS
    auto = "AutoModelForQuestionAnswering"

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Cross-entropy in nats, averaged over start and end; of a window without the answer, that
        of the null token."""
        return self._mean(
            F.cross_entropy(logits, batch[side], reduction="none")
            for side, logits in self._logits(outputs, batch).items()
        )

    def reference(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002
        return {side: field(outputs, f"{side}_logits", i) for i, side in enumerate(_SIDES)}

    def divergence(self, outputs: Any, dense: dict[str, Tensor], batch: Batch) -> Tensor:
        """KL(dense || outputs) in nats, averaged over start and end."""
        wanted = {side: self._masked(dense[side], batch) for side in _SIDES}
        return self._mean(
            _kl(logits, wanted[side]) for side, logits in self._logits(outputs, batch).items()
        )

    def distributions(self, outputs: Any, batch: Batch) -> list[Distribution]:
        logits = self._logits(outputs, batch).values()
        return [Distribution(own, own.new_full((len(own),), 1 / len(_SIDES))) for own in logits]

    def error(self, outputs: Any, batch: Batch) -> Tensor:
        """1 - F1 of the window's best answer; of a window without the answer, 1 where the model
        finds one there that is likelier than none."""
        rows = self.rows(outputs, batch)
        shown = batch["start"] != batch["null"]
        return torch.where(shown, 1 - rows[:, _F1], (rows[:, _BEST] > rows[:, _NULL]).double())

    def rows(self, outputs: Any, batch: Batch) -> Tensor:
        """Of each window: the question's number; the scores of its best answer and of none; the F1
        of both; whether none may be answered."""
        logits = self._logits(outputs, batch)
        start, end = logits["start"], logits["end"]
        best, first, last = best_span(start, end, batch["spans"][..., 0] >= 0)
        null = batch["null"][:, None]
        none = (start.gather(1, null) + end.gather(1, null))[:, 0]
        scores = []
        for i in range(len(best)):
            right = _texts(batch["answers"][i])
            scores.append((f1(_answer(batch, i, first, last), right), f1("", right)))
        found = torch.tensor(scores, dtype=torch.float64, device=best.device)
        columns = [batch["question"].double(), best, none, *found.T, batch["optional"].double()]
        return torch.stack(columns, 1)

    def measure(self, rows: Tensor) -> float:
        """The mean F1 of all questions in percent."""
        questions, number = rows[:, 0].unique(return_inverse=True)
        count = len(questions)
        best = _extreme(rows[:, _BEST], number, count, "amax")
        none = _extreme(rows[:, _NULL], number, count, "amin")
        # the best window's; of several that are equally good the better one's
        winner = rows[:, _BEST] == best[number]
        score = _extreme(torch.where(winner, rows[:, _F1], -1.0), number, count, "amax")
        empty = _extreme(rows[:, _EMPTY], number, count, "amax")
        silent = (none > best) & (_extreme(rows[:, _OPTIONAL], number, count, "amax") > 0)
        return 100.0 * float(torch.where(silent | best.isinf(), empty, score).mean())

    def distance(self, outputs: Any, dense: Any, batch: Batch) -> Tensor:
        where = batch["attention_mask"].bool()
        found, wanted = self.reference(outputs, batch), self.reference(dense, batch)
        parts = [F.mse_loss(found[side][where], wanted[side][where]) for side in _SIDES]
        return torch.stack(parts).mean()

    def distill(self, outputs: Any, dense: Any, batch: Batch, temperature: float) -> Tensor:
        found = {k: v / temperature for k, v in self.reference(outputs, batch).items()}
        wanted = {k: v / temperature for k, v in self.reference(dense, batch).items()}
        value = self._mean(
            _kl(self._masked(found[side], batch), self._masked(wanted[side], batch))
            for side in _SIDES
        )
        return value.mean() * temperature**2

    def check(self, outputs: Any, batch: Batch, dataset: Dataset, what: str, model: str) -> None:  # noqa: ARG002
        shape = batch["input_ids"].shape
        for side, logits in self.reference(outputs, batch).items():
            if logits.shape != shape:
                raise ModelError(
                    f"model {model!r} must give {side}_logits {list(shape)} for {self.kind}, and "
                    f"gives {list(logits.shape)}"
                )

    def _logits(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """float64 [n, length], -inf for padding."""
        found = self.reference(outputs, batch)
        return {side: self._masked(found[side], batch) for side in _SIDES}

    def _masked(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits.double().masked_fill(~batch["attention_mask"].bool(), -torch.inf)

    @staticmethod
    def _mean(parts: Iterable[Tensor]) -> Tensor:
        return torch.stack(list(parts)).mean(0)


def _kl(found: Tensor, wanted: Tensor) -> Tensor:
    """KL(wanted || found) of logits [n, length] that are -inf for padding."""
    rows = softmax.every(found)
    return softmax.kl(found, rows, softmax.kept(wanted, rows))


def best_span(start: Tensor, end: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score and place of the best answer of each window: first and last token [n], both of the
    context (`inside`, bool [n, length]). Its score is -inf where a window has no context."""
    start = start.masked_fill(~inside, -torch.inf)
    end = end.masked_fill(~inside, -torch.inf)
    length = start.shape[1]
    # [n, how much longer than a token it is, where it begins]
    scores = torch.stack(
        [
            F.pad(start[:, : length - more] + end[:, more:], (0, more), value=-torch.inf)
            for more in range(min(_LONGEST, length))
        ],
        1,
    )
    best, at = scores.flatten(1).max(1)
    first = at % length
    return best, first, first + at // length


def _answer(batch: Batch, window: int, first: Tensor, last: Tensor) -> str:
    spans = batch["spans"][window]
    begin, end = int(spans[first[window], 0]), int(spans[last[window], 1])
    return "".join(map(chr, batch["context"][window, max(begin, 0) : max(end, 0)].tolist()))


def _texts(characters: Tensor) -> list[str]:
    """Texts that each end in a zero character."""
    return [text for text in "".join(map(chr, characters.tolist())).split("\0") if text]


def _extreme(values: Tensor, number: Tensor, count: int, which: str) -> Tensor:
    """The highest (amax) or lowest (amin) value of each question [count]."""
    made = torch.empty(count, dtype=values.dtype)
    return made.scatter_reduce(0, number, values, which, include_self=False)
