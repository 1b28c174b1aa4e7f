"""What the tasks on text share: what of a batch their models are called with, and whether texts and
model go together."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from apportion.compressors.errors import DataError
from apportion.evaluators.data.dataset import Dataset
from apportion.evaluators.data.padding import by_length
from apportion.evaluators.data.text.ragged import values
from apportion.evaluators.tasks.task import Task

Batch = dict[str, Any]
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class TextTask(Task):
    """A task whose model is called with tokens, as `input_ids`, `attention_mask` and, where there
    are any, `token_type_ids`."""

    axes = ("batch", "sequence")

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return model_inputs(batch)

    def unpadded(self, inputs: dict[str, Tensor]) -> list[Any]:
        return [*by_length(inputs, inputs["attention_mask"])]

    def check_inputs(self, model: nn.Module, dataset: Dataset, what: str, name: str) -> None:
        check_tokens(model, dataset, what, name)


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """Tokens, their mask, and their types where there are any."""
    return {name: batch[name] for name in _INPUTS if name in batch}


def check_tokens(model: nn.Module, dataset: Dataset, part: str, name: str, *path: str) -> None:
    """Whether every sample can be fed: its tokens are the model's, and not more than that has
    positions for.

    Args:
        model: knows its embedding and its configuration, as those of transformers do; nothing is
            said where it does not.
        dataset: the samples.
        part: what they are for: calibration, say.
        name: the model's name, for messages.
        path: where in a batch the inputs are, if not in itself.

    Raises:
        DataError: they cannot; says which key of the job to change.
    """
    ids = values(dataset, *path, "input_ids")
    if ids is None:
        return
    known = _vocabulary(model)
    highest = int(ids.max())
    if known is not None and (highest >= known or int(ids.min()) < 0):
        raise DataError(
            "workload.data.tokenizer",
            f"it gives the {part} texts tokens up to number {highest}, and model {name!r} knows "
            f"{known}: it is not this model's tokenizer",
        )
    batch = dataset.subset([0]).batch
    for key in path:
        batch = batch[key]
    length, most = batch["input_ids"].shape[1], positions(model)
    if most is not None and length > most:
        raise DataError(
            "workload.data.sequence",
            f"the {part} texts have up to {length} tokens, and model {name!r} has positions for "
            f"{most}; {most} or fewer would do",
        )


def positions(model: nn.Module) -> int | None:
    """Tokens that the model can read at once, as its configuration says; None where it does not."""
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not isinstance(most, int) or most <= 0:
        return None
    for own, module in model.named_modules():
        if own.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa's are numbered from behind the padding's own position
            return most if module.padding_idx is None else most - module.padding_idx - 1
    return most


def _vocabulary(model: nn.Module) -> int | None:
    """Tokens that the model's embedding has."""
    found = getattr(model, "get_input_embeddings", None)
    try:
        embedding = found() if found is not None else None
    except NotImplementedError:  # transformers' models that embed no tokens
        return None
    count = getattr(embedding, "num_embeddings", None)
    return count if isinstance(count, int) else None
