"""Smaller models whose layers make up for the channels that they no longer get."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from apportion.compressors.groups.find import Grouped
from apportion.compressors.groups.ladder import Reader, compensated
from apportion.compressors.groups.readers import Kept, gone_from
from apportion.compressors.layers import from_matrix
from apportion.evaluators.rewriting.narrow import narrowed


def without(
    model: nn.Module, grouped: Grouped, readers: Mapping[str, Reader], kept: Kept
) -> nn.Module:
    """A copy of `model` without the channels that are not kept, in which the layers that read them
    have the weights, and biases or batch-norm means, that change their outputs least.

    Args:
        model: left as it is.
        grouped: its channel groups.
        readers: the layers that read them, of `model`, by name; {}: nothing is made up for.
        kept: group -> bool [its channels], which stay.
    """
    made = copy.deepcopy(model)
    for name, own in readers.items():
        gone = gone_from(grouped, name, kept)
        if gone is None:
            continue
        weight, shift = compensated(own, gone)
        own.layer.where.write(made, from_matrix(weight.float(), own.layer))
        shifted(made, grouped, name, shift)
    return narrowed(made, grouped.groups, kept)


def shifted(model: nn.Module, grouped: Grouped, layer: str, shift: Tensor) -> None:
    """Add `shift` [rows] to what the layer puts out: to its bias, or to what the batch-norm behind
    it takes for the mean, in place; to nothing where it has neither."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    bias, mean = parameters.get(grouped.biases.get(layer, "")), grouped.norms.get(layer)
    with torch.no_grad():
        if bias is not None and bias.shape == shift.shape:
            bias.add_(shift.to(bias.dtype))
        elif mean is not None:
            running = model.get_buffer(mean)
            running.sub_(shift.to(running.dtype))
