import copy

import pytest
import torch
from torch import nn

from apportion.compressors.activations import (
    ActivationGrid,
    TokenGrid,
    calibrate_activations,
    quantize_input,
)
from apportion.compressors.calibration import over
from apportion.compressors.errors import LayerError
from apportion.compressors.grids import GridOptions, fit_grid
from tests.compressors.problems import layers_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu())


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(50, 5, generator=generator) * scale for scale in (0.1, 3.0, 1.0)]


def test_the_grids_are_those_of_all_inputs_together() -> None:
    net, data = Net(), batches()
    found = calibrate_activations(net, layers_of(net, data[0]), over(*data), [4, 8])
    inputs = {"a": torch.cat(data), "b": net.a(torch.cat(data)).relu().detach()}
    for name, x in inputs.items():
        for bits, grid in found[name].items():
            exact = fit_grid(x.reshape(1, -1), bits, GridOptions(per="tensor"))
            error = ((grid(x) - x).abs() ** 2.4).sum()
            best = ((exact.nearest(x.reshape(1, -1)).reshape(x.shape) - x).abs() ** 2.4).sum()
            assert grid.bits == bits
            assert 0 <= grid.zero < 2**bits
            assert error <= 1.05 * best  # of a histogram instead of all values
    assert found["b"][8].zero == 0  # nothing below zero comes out of a ReLU


def test_a_quantized_input_takes_the_grids_values_and_stays_in_copies() -> None:
    net, x = Net(), batches()[1]
    plain = net(x)
    grid = ActivationGrid(2, 0.5, 1)
    quantize_input(net.a, grid)
    expected = net.b(torch.nn.functional.linear(grid(x), net.a.weight, net.a.bias).relu())
    assert torch.equal(net(x), expected)
    assert torch.equal(copy.deepcopy(net)(x), expected)
    assert len(grid(x).unique()) == 4
    quantize_input(net.a, None)
    assert torch.equal(net(x), plain)
    quantize_input(net.a, grid)
    assert len(net.a._forward_pre_hooks) == 1


def test_each_token_has_a_scale_of_its_own() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 4, 16, generator=generator) * torch.tensor([1e-3, 1.0, 50.0])[:, None, None]
    x[1, 2] = 0
    found = TokenGrid(8)(x)
    largest = x.abs().amax(-1, keepdim=True)
    assert ((found - x).abs() <= largest / 255 * 1.01).all()
    assert torch.equal(found[1, 2], x[1, 2])
    for token, own in zip(x.flatten(0, 1), found.flatten(0, 1), strict=True):
        assert torch.equal(TokenGrid(8)(token), own)  # whatever stands beside it
        assert len(own.unique()) <= 16
    assert len((TokenGrid(2)(x[0, 0]) / x[0, 0].abs().max()).unique()) <= 4
    x.requires_grad_()
    TokenGrid(4)(x).sum().backward()
    assert x.grad is not None
    assert (x.grad == 1).all()


def test_an_input_that_is_always_zero_has_a_grid_that_keeps_it() -> None:
    net = Net()
    grid = calibrate_activations(
        net, layers_of(net, torch.zeros(4, 5))[:1], over(torch.zeros(4, 5)), [8]
    )["a"][8]
    assert torch.equal(grid(torch.zeros(3)), torch.zeros(3))


def test_an_input_that_is_not_finite_is_an_error_that_names_the_layer() -> None:
    net = Net()
    with pytest.raises(LayerError, match="layer 'a': its inputs"):
        calibrate_activations(
            net, layers_of(net, torch.zeros(1, 5)), over(torch.full((1, 5), torch.nan)), [8]
        )


def test_inputs_given_by_keyword_are_quantized_like_others() -> None:
    class Keywords(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(input=self.a(input=x).relu())

    torch.manual_seed(0)
    plain, net = Net(), Keywords()
    net.load_state_dict(plain.state_dict())
    data = over(*batches())
    layers = layers_of(net, batches()[0])
    assert all(layer.by_module for layer in layers)
    grids = calibrate_activations(net, layers, data, [4])
    assert grids == calibrate_activations(plain, layers_of(plain, batches()[0]), data, [4])
    for model in (plain, net):
        for name, grid in grids.items():
            quantize_input(model.get_submodule(name), grid[4])
    x = batches()[1]
    assert torch.equal(net(x), plain(x))
