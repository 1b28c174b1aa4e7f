"""What a smaller model must be equal to: the dense one in which nobody reads what is gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apportion.compressors.calibration import over
from apportion.compressors.groups.find import ChannelGroup, Grouped, find_groups
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.kinds.uses import Found
from apportion.evaluators.costs.channels.counts import channel_costs
from apportion.evaluators.rewriting.masked import masked, working
from apportion.evaluators.rewriting.narrow import narrowed
from tests.compressors.kinds.test_torchvision import counted


def grouped(model: nn.Module, batch: Any) -> tuple[Found, Grouped]:
    found = find_layers(model, over(batch))
    return found, find_groups(model, found.layers, over(batch), batch)


def some_of(
    groups: Sequence[ChannelGroup], rng: np.random.Generator, share: float = 0.5
) -> dict[str, np.ndarray]:
    """Random channels that stay, at least one of each group."""
    made = {}
    for group in groups:
        count = max(1, round(group.size * share))
        stays = np.zeros(group.size, bool)
        stays[rng.permutation(group.size)[:count]] = True
        made[group.name] = stays
    return made


def check(
    model: nn.Module,
    batch: Tensor,
    rng: np.random.Generator,
    share: float = 0.5,
    tried: bool = False,
) -> Grouped:
    """The smaller model gives what the masked one gives, and costs what was counted.

    Args:
        model: in eval mode.
        batch: for it.
        rng: chooses the channels that stay.
        share: of each group's channels that stay.
        tried: of the groups without which the model's own code runs.
    """
    found, made = grouped(model, batch)
    if tried:
        made = working(model, made, found.layers, over(batch), batch)
    kept = some_of(made.groups, rng, share)
    small = narrowed(model, made.groups, kept)
    expected = outputs(masked(model, found.layers, made.groups, kept), batch)
    got = outputs(small, batch)
    scale = float(expected.abs().max())
    assert scale > 0
    assert float((got - expected).abs().max()) <= 1e-4 * scale
    counts = {name: int(stays.sum()) for name, stays in kept.items()}
    costs = channel_costs(model, found, made.groups)
    assert costs.total("params", counts) == sum(p.numel() for p in small.parameters())
    assert costs.total("flops", counts) == counted(small, batch[:1])
    return made


def outputs(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        made = model(**batch) if isinstance(batch, dict) else model(batch)
    if isinstance(made, Tensor):
        return made
    found: Tensor = made["logits"] if "logits" in made else next(iter(made.values()))
    return found
