"""Masked language models: tokens that were taken out, from all around them."""

from __future__ import annotations

from torch import Tensor

from apportion.evaluators.data import forms
from apportion.evaluators.tasks.text.perplexity import LanguageModel
from apportion.evaluators.tasks.text.tokens import Batch


class MaskedLM(LanguageModel):
    """The tokens that are masked (`labels` [n, length], -100 elsewhere)."""

    kind = "masked-lm"
    form = forms.MASKED
    auto = "AutoModelForMaskedLM"

    def asked(self, batch: Batch) -> tuple[Tensor, Tensor]:
        asked = batch["labels"] >= 0
        return asked, batch["labels"][asked]
