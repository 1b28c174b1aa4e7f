"""Layers at filter levels in the shapes that are left of them: dense kernels that compute no more
than they must."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from apportion.compressors.levels import Level
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.rewriting.channels import close, find_channel_groups


def reducible(level: Level) -> bool:
    """Whether a layer at this level runs in a smaller shape."""
    return (
        level.sparsity is not None
        and level.sparsity.kind == "filter"
        and level.quantization is None
    )


def reducible_layers(database: LayerDatabase, profile: Mapping[str, Level]) -> list[str]:
    """The layers of the profile that run in smaller shapes, under all their names."""
    return [
        own
        for name, level in profile.items()
        if reducible(level)
        for own in (name, *database.layers[name].aliases)
    ]


class ReducedLayer(nn.Module):
    """A convolution or linear layer without the output channels whose weights are all zeros; what
    they put out, zeros or their bias, is filled in, so that the rest of the model stays as it is:
    the output has the layer's own shape. Of a depthwise convolution the groups go.

    kept [channels left]: int64, which channels are computed; filling [k, 1, ...]: what the others
    put out, one place of zeros for all of them where there is no bias; source [channels]: the place
    of every output channel in what is computed and, behind it, the filling."""

    kept: Tensor
    filling: Tensor
    source: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        there = weight.detach().flatten(1).ne(0).any(1)
        kept = there.nonzero().squeeze(1)
        self.inner = copy.deepcopy(layer)
        self.inner.weight = nn.Parameter(weight.detach()[kept], requires_grad=False)
        self._depthwise = not isinstance(layer, nn.Linear) and int(layer.groups) > 1  # type: ignore[arg-type]
        if isinstance(self.inner, nn.Linear):
            self.inner.out_features = len(kept)
        elif isinstance(self.inner, (nn.Conv1d, nn.Conv2d)):
            self.inner.out_channels = len(kept)
            if self._depthwise:
                self.inner.groups = self.inner.in_channels = len(kept)
        filling, place = weight.new_zeros(1), torch.zeros_like(there, dtype=torch.int64)
        if isinstance(bias, Tensor):
            self.inner.bias = nn.Parameter(bias.detach()[kept], requires_grad=False)
            filling, place = bias.detach()[~there], (~there).cumsum(0) - 1
        self.register_buffer("kept", kept)
        self.register_buffer("filling", filling.reshape(-1, *[1] * (weight.dim() - 2)))
        self.register_buffer("source", torch.where(there, there.cumsum(0) - 1, len(kept) + place))
        self._dim = (
            1 - weight.dim()
        )  # of the channels, counted from the end: of a batch and of one image alike

    def forward(self, input: Tensor) -> Tensor:  # named as those that it stands for name it
        y = self.inner(input.index_select(self._dim, self.kept) if self._depthwise else input)
        shape = [*y.shape]
        shape[self._dim] = len(self.filling)
        return torch.cat([y, self.filling.expand(shape)], self._dim).index_select(
            self._dim, self.source
        )


def reduce_layers(model: nn.Module, names: Collection[str], fixed: Collection[str] = ()) -> None:
    """Put the layers of `model` (eval mode) with these names into their reduced shapes: with
    nothing filled in where one other layer, that is not `fixed`, takes their outputs
    (`channels`)."""
    groups = find_channel_groups(model, names, fixed) if names else []
    for group in groups:
        close(model, group)
    closed = {name for group in groups for name in (group.layer, *group.depthwise)}
    for name in set(names) - closed:
        parent = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(
            parent, nn.MultiheadAttention
        ):  # which does not call its projection, but takes its weight
            model.set_submodule(name, ReducedLayer(model.get_submodule(name)))
