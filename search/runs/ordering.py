"""In which order channels go, by any criterion."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from apportion.compressors.groups import criteria
from apportion.compressors.groups.find import Grouped
from apportion.compressors.groups.ladder import Reader, channel_ladder
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data import trees
from apportion.evaluators.tasks.task import Task


def channel_orders(
    criterion: str,
    model: nn.Module,
    task: Task,
    batches: Sequence[Any],
    grouped: Grouped,
    readers: Mapping[str, Reader],
    rng: np.random.Generator,
    progress: Progress = silent,
) -> dict[str, np.ndarray]:
    """Put the channels of each group in order.

    Args:
        criterion: its name.
        model: the dense one.
        task: gives the loss that some criteria look at.
        batches: the data.
        grouped: the groups.
        readers: the layers that read them.
        rng: of criteria that draw.
        progress: told of groups.

    Returns:
        Group -> [channels], which goes first.
    """
    criteria.check_criterion(criterion)
    squares = None
    if criteria.needs_gradients(criterion):
        model = _with_gradients(model, task, batches)
    if criteria.needs_squares(criterion):
        squares = _squares(model, task, batches)
    made = {}
    for done, group in enumerate(grouped.groups):
        progress("order channels", done, len(grouped.groups))
        made[group.name] = (
            channel_ladder(group, readers).order
            if criterion == criteria.OBS
            else criteria.order_by(criterion, model, group, rng, squares)
        )
    return made


def _with_gradients(model: nn.Module, task: Task, batches: Sequence[Any]) -> nn.Module:
    """A copy whose parameters have the gradients of the loss."""
    made = copy.deepcopy(model).requires_grad_(True)
    for batch in batches:
        task.loss(task.forward(made, batch), batch).sum().backward()
    return made


def _squares(model: nn.Module, task: Task, batches: Sequence[Any]) -> dict[str, Tensor]:
    """Of every sample's own gradients, on average."""
    made = copy.deepcopy(model).requires_grad_(True)
    each = (
        trees.cut(batch, slice(i, i + 1)) for batch in batches for i in range(task.samples(batch))
    )
    losses = (task.loss(task.forward(made, one), one).sum() for one in each)
    return criteria.squared_gradients(made, losses)
