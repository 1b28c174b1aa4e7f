"""Tasks and data of a user's that are not right: for malformed inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from apportion.evaluators.data.dataset import Splits, TensorDataset
from apportion.evaluators.tasks.regression import Regression
from tests.vision import nets

FARTHEST = float(nets.numbers(64, 1).batch[1][7, 0])


class Mean(Regression):
    """One loss for the whole batch."""

    kind = ""

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        return super().loss(outputs, batch).mean()


class Infinite(Regression):
    kind = ""

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        return super().loss(outputs, batch) / 0


class SometimesNaN(Regression):
    """Not finite for a sample that is not among the first."""

    kind = ""

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        found = super().loss(outputs, batch)
        return torch.where(batch[1][:, 0] < 0, float("nan"), found)


class OnceNaN(Regression):
    """Not finite for one sample of all."""

    kind = ""

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        found = super().loss(outputs, batch)
        return torch.where(batch[1][:, 0] == FARTHEST, float("nan"), found)


class Raising(Regression):
    kind = ""

    def measure(self, rows: Tensor) -> float:
        raise KeyError(f"no such row of {len(rows)}")


class RaisingLate(Regression):
    """On all samples alone."""

    kind = ""

    def measure(self, rows: Tensor) -> float:
        if len(rows) > 2:
            raise KeyError("too many rows")
        return super().measure(rows)


class Worded(Regression):
    """A metric that is no number."""

    kind = ""

    def measure(self, rows: Tensor) -> float:
        return f"good on {len(rows)}"  # type: ignore[return-value]


def narrow() -> Splits:
    """Seven features, where the model takes twelve."""
    whole = nets.numbers(32, 1).batch
    data = TensorDataset((whole[0][:, :7], whole[1]))
    return Splits(data, data)


def narrow_test() -> Splits:
    """Of the test data alone."""
    return Splits(nets.numbers(32, 1), narrow().test)


def ordered() -> Splits:
    """The first samples have targets above 0."""
    inputs, targets = nets.numbers(64, 1).batch
    order = targets[:, 0].argsort(descending=True)
    data = TensorDataset((inputs[order], targets[order]))
    return Splits(data, data)


def none() -> Splits:
    """No test data."""
    return Splits(nets.numbers(32, 1), nets.numbers(32, 1).subset([]))


def cut() -> Splits:
    """No test data, cut from tensors."""
    inputs, targets = nets.numbers(32, 1).batch
    return Splits(nets.numbers(32, 1), TensorDataset((inputs[:0], targets[:0])))


def twice_the_class() -> Splits:
    """Masks with a class that the model does not have, far back."""
    images, wanted = nets.masks(32, 1).batch
    wanted[-1, 0, 0] = 77
    data = TensorDataset((images, wanted))
    return Splits(data, data)
