"""Reduced layers give what the layers with zeros give."""

import pytest
import torch
from torch import nn

from apportion.evaluators.rewriting.reduced import ReducedLayer, reduce_layers

LAYERS: dict[str, tuple[nn.Conv1d | nn.Conv2d | nn.Linear, tuple[int, ...]]] = {
    "conv2d": (nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 9, 9)),
    "no bias": (nn.Conv2d(6, 8, 3, padding="same", dilation=2, bias=False), (2, 6, 9, 9)),
    "conv1d": (nn.Conv1d(6, 8, 3), (2, 6, 9)),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), (2, 8, 9, 9)),
    "linear": (nn.Linear(6, 8), (2, 6)),
    "leading dimensions": (nn.Linear(6, 8, bias=False), (2, 3, 5, 6)),
    "one image": (nn.Conv2d(6, 8, 3), (6, 9, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_those_of_the_whole_layer(name: str) -> None:
    layer, shape = LAYERS[name]
    with torch.no_grad():
        layer.weight[[0, 3, 7]] = 0
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    reduced = ReducedLayer(layer)
    assert len(reduced.get_parameter("inner.weight")) == 5
    torch.testing.assert_close(reduced(x), layer(x))


def test_layers_are_replaced_by_name() -> None:
    inside = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), inside)
    with torch.no_grad():
        model.get_parameter("1.1.weight")[2] = 0
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    reduce_layers(model, ["1.1"])
    assert isinstance(inside[1], ReducedLayer)
    torch.testing.assert_close(model(x), expected)
