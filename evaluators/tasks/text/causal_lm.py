"""Language models from left to right: every token from those before it."""

from __future__ import annotations

from torch import Tensor

from apportion.evaluators.data import forms
from apportion.evaluators.tasks.text.perplexity import LanguageModel
from apportion.evaluators.tasks.text.tokens import Batch


class CausalLM(LanguageModel):
    """Every token but the first, padding left out."""

    kind = "causal-lm"
    form = forms.TOKENS
    auto = "AutoModelForCausalLM"

    def asked(self, batch: Batch) -> tuple[Tensor, Tensor]:
        mask = batch["attention_mask"].bool()
        next_counts = mask & mask.roll(-1, 1)
        next_counts[:, -1] = False
        return next_counts, batch["input_ids"].roll(-1, 1)[next_counts]
