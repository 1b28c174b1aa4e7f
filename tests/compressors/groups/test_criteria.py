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


def test_what_changes_the_loss_least_in_the_second_order_goes_first_by_the_hessian() -> None:
    """For a quadratic loss the squares are known: the channel of least 1/2 sum h w^2."""
    model, group = two_layers()
    x = torch.rand(5, 3)
    losses = [model(x[i : i + 1]).sum() for i in range(5)]
    squares = criteria.squared_gradients(model, losses)
    by_hand = torch.zeros(2, 4)
    for i in range(5):
        model.zero_grad()
        model(x[i : i + 1]).sum().backward()
        gradient = model.get_parameter("2.weight").grad
        assert gradient is not None
        by_hand += gradient**2 / 5
    torch.testing.assert_close(squares["2.weight"], by_hand)
    squares = {name: torch.zeros_like(own) for name, own in squares.items()}
    squares["2.weight"][:, 0] = 0.1  # x 4^2: 3.2 / 2
    squares["2.weight"][:, 1] = 0.3  # x 3^2: 5.4 / 2
    squares["0.weight"][2] = 0.2  # x 2^2: 2.4 / 2
    squares["0.weight"][3] = 2.0  # x 1^2: 6.0 / 2
    order = order_by("hessian", model, group, np.random.default_rng(0), squares)
    assert order.tolist() == [2, 0, 1, 3]
    with pytest.raises(ConfigurationError, match="no squares"):
        order_by("hessian", model, group, np.random.default_rng(0))


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

    monkeypatch.setattr(criteria, "_NEEDS", dict(criteria._NEEDS))

    @criterion("largest", needs="gradients")
    def largest(weights: ChannelWeights, _: np.random.Generator) -> Tensor:
        return -weights.values.abs().amax(1)

    model, group = two_layers()
    assert order_by("largest", model, group, np.random.default_rng(0)).tolist() == [0, 1, 2, 3]
    assert criteria.needs_gradients("largest")
    with pytest.raises(UnknownNameError, match="criterion 'magic'.*fpgm, hessian, l1, l2"):
        criteria.check_criterion("magic")
