"""Small transformers models with random weights, as folders that `save_pretrained` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from apportion.evaluators.tasks.task import Metric, Task

WORDS, LENGTH = 48, 10
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


class Field(Task):
    """Squared distance of one field of the outputs from the batch's `wanted`; over the last
    dimension, averaged over what the mask counts. A task as users would write it."""

    metric = Metric("distance", "", higher_is_better=False, tolerance=1e-3)
    field: ClassVar[str] = "logits"

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: batch[key] for key in ("input_ids", "attention_mask")}

    def loss(self, outputs: Any, batch: dict[str, Tensor]) -> Tensor:
        return self._apart(self._of(outputs), batch["wanted"], batch)

    def divergence(self, outputs: Any, dense: Any, batch: dict[str, Tensor]) -> Tensor:
        return self._apart(self._of(outputs), self._of(dense), batch)

    def error(self, outputs: Any, batch: dict[str, Tensor]) -> Tensor:
        return self.loss(outputs, batch)

    def counted(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["attention_mask"].bool()

    def measure(self, rows: Tensor) -> float:
        return float(rows.mean())

    def _of(self, outputs: Any) -> Tensor:
        found = getattr(outputs, self.field, outputs)
        made: Tensor = found[0] if isinstance(found, tuple) else found
        return made

    @staticmethod
    def _apart(one: Tensor, other: Tensor, batch: dict[str, Tensor]) -> Tensor:
        far = (one.double() - other.double()).square().sum(-1)
        if far.dim() == 1:
            return far
        mask = batch["attention_mask"]
        return (far * mask).sum(1) / mask.sum(1)


class Embedding(Field):
    auto, field = "AutoModel", "last_hidden_state"
    pooling = "mean"


class CausalLM(Field):
    auto = "AutoModelForCausalLM"


class MaskedLM(Field):
    auto = "AutoModelForMaskedLM"


class Classes(Field):
    auto = "AutoModelForSequenceClassification"
