"""A model that is cut into parts, each of which begins with what the one before it gave."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from apportion.evaluators.data.dataset import Batch
from apportion.evaluators.tasks.task import Outputs

Forward = Callable[[nn.Module, Batch], Outputs]
"""How a task feeds a batch to a model."""
Keep = Callable[[int, Any], None]
"""Told what part i begins with, as it comes."""


class Cuts(ABC):
    """count: how many parts there are; where: layer -> the first part that uses it."""

    count: int
    where: Mapping[str, int]

    @abstractmethod
    def run(self, batch: Batch, start: int, begin: Any, keep: Keep) -> Outputs:
        """The model's outputs on a batch.

        Args:
            batch: as the task hands it out.
            start: the part to begin at; 0: the whole model runs.
            begin: what that part begins with, once given to `keep`; not looked at for 0.
            keep: told what each part after `start` begins with.
        """


class Whole(Cuts):
    """A model of one part."""

    count = 1

    def __init__(self, model: nn.Module, layers: Mapping[str, Any], forward: Forward) -> None:
        self.where = dict.fromkeys(layers, 0)
        self._model, self._forward = model, forward

    def run(self, batch: Batch, start: int, begin: Any, keep: Keep) -> Outputs:  # noqa: ARG002
        return self._forward(self._model, batch)
