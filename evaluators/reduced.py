"""Layers at filter levels in the shapes that are left of them: dense kernels that compute no more than they must."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn


class ReducedLayer(nn.Module):
    """A convolution or linear layer without the output channels whose weights are all zeros; what they put out, zeros or their
    bias, is filled in, so that the rest of the model stays as it is: the output has the layer's own shape. Of a depthwise
    convolution the groups go.

    kept [channels left]: int64, which output channels are computed; source [channels]: which of them each channel of the output
    is; rest [channels, 1, ...]: the bias of those that are not computed, None without one."""

    kept: Tensor
    source: Tensor
    rest: Tensor | None

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
        rest = None
        if isinstance(bias, Tensor):
            self.inner.bias = nn.Parameter(bias.detach()[kept], requires_grad=False)
            rest = (bias.detach() * ~there).reshape(-1, *[1] * (weight.dim() - 2))
        self.register_buffer("rest", rest)
        self.register_buffer("kept", kept)
        # Channel c of the output is channel source[c] of what is computed, behind which stands a channel of zeros.
        self.register_buffer("source", torch.where(there, there.cumsum(0) - 1, len(kept)))
        self._dim = 1 - weight.dim()  # of the channels, counted from the end: of a batch and of one image alike

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x.index_select(self._dim, self.kept) if self._depthwise else x)
        nothing = torch.zeros_like(y.narrow(self._dim, 0, 1))
        y = torch.cat([y, nothing], self._dim).index_select(self._dim, self.source)
        return y if self.rest is None else y + self.rest


def reduce_layers(model: nn.Module, names: Collection[str]) -> None:
    """Put the layers of `model` with these names into their reduced shapes."""
    for name in names:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, ReducedLayer(model.get_submodule(name)))
