"""What a smaller model must be equal to: the dense one in which nobody reads what is gone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from apportion.compressors.calibration import over
from apportion.compressors.groups.find import ChannelGroup, Grouped, find_groups
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.kinds.uses import Found
from apportion.compressors.layers import LayerSpec, from_matrix, to_matrix
from apportion.evaluators.costs.channels import channel_costs
from apportion.evaluators.rewriting.narrow import narrowed


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


def masked(
    model: nn.Module,
    layers: Sequence[LayerSpec],
    groups: Sequence[ChannelGroup],
    kept: Mapping[str, np.ndarray],
) -> nn.Module:
    made, by_name = copy.deepcopy(model), {layer.name: layer for layer in layers}
    for group in groups:
        for name, columns in group.readers.items():
            layer = by_name[name]
            weight = to_matrix(layer.where.read(made), layer).clone()
            gone = torch.from_numpy((columns >= 0) & ~kept[group.name][columns])
            split = weight.unflatten(0, (layer.groups, -1))
            split.masked_fill_(gone[:, None, :], 0)
            layer.where.write(made, from_matrix(weight, layer))
    return made


def check(model: nn.Module, batch: Any, rng: np.random.Generator, share: float = 0.5) -> Grouped:
    """The smaller model gives what the masked one gives, and costs what was counted."""
    found, made = grouped(model, batch)
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
    with FlopCounterMode(display=False) as counter:
        outputs(small, batch)
    samples = len(batch) if isinstance(batch, Tensor) else 1
    assert costs.total("flops", counts) * 2 * samples == counter.get_total_flops()
    return made


def outputs(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        made = model(**batch) if isinstance(batch, dict) else model(batch)
    if isinstance(made, Tensor):
        return made
    found: Tensor = made["logits"] if "logits" in made else next(iter(made.values()))
    return found
