"""What the tasks share whose samples are a text, an image or numbers, and a row of targets."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from apportion.evaluators.data import forms
from apportion.evaluators.data.dataset import Batch, Dataset
from apportion.evaluators.data.padding import mask_of, without_padding
from apportion.evaluators.tasks.task import Inputs, Task
from apportion.evaluators.tasks.text.tokens import TextTask, check_tokens

LABELS = "labels"
"""The key of what is wanted in a dict batch; in a tuple it stands last."""


def given(batch: Batch) -> Any:
    """What the model is called with: a dict without its `labels`; of a tuple of two the first,
    which may itself be a tuple of arguments or a dict of keywords; of a longer one all but the
    last."""
    if isinstance(batch, dict):
        return {key: value for key, value in batch.items() if key != LABELS}
    return batch[0] if len(batch) == 2 else tuple(batch[:-1])


def wanted(batch: Batch) -> Tensor:
    """What should come out."""
    found: Tensor = batch[LABELS] if isinstance(batch, dict) else batch[-1]
    return found


class TargetsTask(Task):
    """A task whose batches are (inputs, targets), where inputs is a tree, or a dict with the
    targets as `labels`."""

    form = forms.TARGETS
    auto = "AutoModelForSequenceClassification"

    def inputs(self, batch: Batch) -> Any:
        return given(batch)

    def samples(self, batch: Batch) -> int:
        return len(wanted(batch))

    def unpadded(self, inputs: Inputs) -> list[Inputs]:
        return without_padding(inputs)

    def open_axes(self, inputs: Inputs) -> tuple[str, ...]:
        """Texts are of any length."""
        return self.axes if mask_of(inputs) is None else TextTask.axes

    def check_inputs(self, model: nn.Module, dataset: Dataset, what: str, name: str) -> None:
        check_tokens(model, dataset, what, name)
