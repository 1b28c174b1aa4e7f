"""What of a batch is wanted, and what goes in: for tasks whose samples are numbers of any kind."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from apportion.evaluators.data.dataset import Batch

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
