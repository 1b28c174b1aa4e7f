"""Small transformers models with random weights, as folders that `save_pretrained` wrote."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from apportion.evaluators.data.dataset import Splits, TensorDataset
from apportion.evaluators.tasks.task import Metric, Task

WORDS, LENGTH = 48, 10
Batch = dict[str, Tensor]
TEXT: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TEXT, "num_attention_heads": 4, "num_key_value_heads": 2}


def make(name: str, **changes: Any) -> Any:
    """A model of transformers by the name of its class, in eval mode; the same weights every
    time."""
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = TEXT
    if name.startswith("GPT2"):
        sizes = {
            "vocab_size": WORDS,
            "n_positions": 16,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    elif name.startswith(("Llama", "Mixtral")):
        sizes = {**GROUPED, **({"num_local_experts": 4} if name.startswith("Mixtral") else {})}
    elif name.startswith("ViT"):
        sizes = {key: TEXT[key] for key in TEXT if key.startswith(("hidden", "inter", "num"))}
        sizes = {**sizes, "image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10}
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**{**sizes, **changes}))
    for parameter in model.parameters():  # as they come, layers hardly change what they are given
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=2 * parameter.shape[-1] ** -0.5)
    return model.eval()


def saved(folder: Path, name: str, **changes: Any) -> Path:
    """The folder, with such a model in it."""
    make(name, **changes).save_pretrained(folder)
    return folder


class NextToken(Task):
    """Which token comes next; the metric is the perplexity over all tokens of all texts. A task as
    users would write it."""

    metric = Metric("perplexity", "", higher_is_better=False, tolerance=0.05, digits=".2f")
    auto = "AutoModelForCausalLM"

    def inputs(self, batch: Batch) -> Batch:
        return {key: batch[key] for key in ("input_ids", "attention_mask")}

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return _mean(self._nats(outputs, batch), batch)

    def divergence(self, outputs: Any, dense: Any, batch: Batch) -> Tensor:
        found, target = _scores(outputs), _scores(dense)
        return _mean(F.kl_div(found, target, reduction="none", log_target=True).sum(2), batch)

    def error(self, outputs: Any, batch: Batch) -> Tensor:
        return _mean((_scores(outputs).argmax(2) != batch["input_ids"][:, 1:]).double(), batch)

    def rows(self, outputs: Any, batch: Batch) -> Tensor:
        counts = batch["attention_mask"][:, 1:]
        return torch.stack([(self._nats(outputs, batch) * counts).sum(1), counts.sum(1)], 1)

    def measure(self, rows: Tensor) -> float:
        nats, tokens = rows.sum(0).tolist()
        return float(math.exp(nats / tokens))

    def _nats(self, outputs: Any, batch: Batch) -> Tensor:
        found = _scores(outputs).transpose(1, 2)
        return F.nll_loss(found, batch["input_ids"][:, 1:], reduction="none")


def _scores(outputs: Any) -> Tensor:
    """Log-probabilities [n, length - 1, words] of a model's outputs, or of the logits alone."""
    logits: Tensor = getattr(outputs, "logits", outputs)
    return logits[:, :-1].double().log_softmax(2)


def _mean(values: Tensor, batch: Batch) -> Tensor:
    counts = batch["attention_mask"][:, 1:]
    return (values * counts).sum(1) / counts.sum(1)


class Classes(Task):
    """One class of a text."""

    metric = Metric("right answers", "%", higher_is_better=True, tolerance=0.5, digits=".1f")
    auto = "AutoModelForSequenceClassification"

    def inputs(self, batch: Batch) -> Batch:
        return {key: batch[key] for key in ("input_ids", "attention_mask")}

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return F.nll_loss(self._scores(outputs), batch["labels"], reduction="none")

    def divergence(self, outputs: Any, dense: Any, batch: Batch) -> Tensor:  # noqa: ARG002
        found, target = self._scores(outputs), self._scores(dense)
        return F.kl_div(found, target, reduction="none", log_target=True).sum(1)

    def error(self, outputs: Any, batch: Batch) -> Tensor:
        return (self._scores(outputs).argmax(1) != batch["labels"]).double()

    def measure(self, rows: Tensor) -> float:
        return 100 * float((1 - rows).mean())

    @staticmethod
    def _scores(outputs: Any) -> Tensor:
        logits: Tensor = getattr(outputs, "logits", outputs)
        return logits.double().log_softmax(1)


class MaskedLM(NextToken):
    auto = "AutoModelForMaskedLM"


class Embedding(NextToken):
    auto = "AutoModel"
    pooling = "mean"


def texts(count: int, seed: int, classes: int = 2) -> TensorDataset:
    """Random tokens of 4 to LENGTH, padded, and random labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, WORDS, (count, LENGTH), generator=generator)
    length = torch.randint(4, LENGTH + 1, (count, 1), generator=generator)
    mask = (torch.arange(LENGTH) < length).long()
    labels = torch.randint(0, classes, (count,), generator=generator)
    return TensorDataset({"input_ids": ids * mask, "attention_mask": mask, "labels": labels})


def splits() -> Splits:
    return Splits(texts(48, 1), texts(40, 2))
