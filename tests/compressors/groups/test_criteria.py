"""Orders of channels by other criteria, on weights whose order is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apportion.compressors.errors import ConfigurationError, UnknownNameError
from apportion.compressors.groups import criteria
from apportion.compressors.groups.criteria import ChannelWeights, criterion, order_by
from apportion.compressors.groups.find import ChannelGroup
from tests.compressors.groups.masking import grouped


def two_layers() -> tuple[nn.Sequential, ChannelGroup]:
    """Channel c has weights of size 4 - c in both layers, but for the bias: 0."""
    one, two = nn.Linear(3, 4), nn.Linear(4, 2)
    model = nn.Sequential(one, nn.ReLU(), two).eval()
    sizes = torch.tensor([4.0, 3.0, 2.0, 1.0])
    with torch.no_grad():
        for layer, value in ((one, sizes[:, None].expand(4, 3)), (two, sizes.expand(2, 4))):
            layer.weight.copy_(value)
            layer.bias.zero_()
    _, made = grouped(model, torch.rand(2, 3))
    (group,) = made.groups
    return model, group


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_the_smallest_weights_go_first(name: str) -> None:
    model, group = two_layers()
    order = order_by(name, model, group, np.random.default_rng(0))
    assert order.tolist() == [3, 2, 1, 0]


def test_the_middle_goes_first_by_the_geometric_median() -> None:
    model, group = two_layers()
    order = order_by("fpgm", model, group, np.random.default_rng(0))
    assert set(order[:2].tolist()) == {1, 2}  # sizes 3 and 2, between 4 and 1


def test_what_the_loss_does_not_depend_on_goes_first_by_taylor() -> None:
    model, group = two_layers()
    x = torch.rand(8, 3)
    hidden = model[0](x).relu()
    hidden = torch.stack([hidden[:, 0] * 0, hidden[:, 1], hidden[:, 2], hidden[:, 3]], 1)
    (model[2](hidden)).square().mean().backward()
    order = order_by("taylor", model, group, np.random.default_rng(0))
    assert order[0] == 0
    model.zero_grad()
    with pytest.raises(ConfigurationError, match="no gradients"):
        order_by("taylor", model, group, np.random.default_rng(0))


def test_random_follows_its_generator() -> None:
    model, group = two_layers()
    one, same, other = (
        order_by("random", model, group, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)
    )
    assert one == same
    assert sorted(one) == [0, 1, 2, 3]
    assert one != other


def test_a_criterion_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteria, "_CRITERIA", dict(criteria._CRITERIA))

    @criterion("largest")
    def largest(weights: ChannelWeights, _: np.random.Generator) -> Tensor:
        return -weights.values.abs().amax(1)

    model, group = two_layers()
    assert order_by("largest", model, group, np.random.default_rng(0)).tolist() == [0, 1, 2, 3]
    with pytest.raises(UnknownNameError, match="criterion 'magic'.*fpgm, l1, l2"):
        criteria.check_criterion("magic")
