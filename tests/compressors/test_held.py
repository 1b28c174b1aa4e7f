"""Training that holds masks and grids."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from apportion.compressors.activations import ActivationGrid
from apportion.compressors.grids import GridOptions, fit_grid
from apportion.evaluators.training.held import Hold, held


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 3)
    )


def train(model: nn.Module, steps: int = 5) -> None:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    for _ in range(steps):
        loss = (model(torch.randn(8, 2, 5, 5, generator=generator)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@settings(deadline=None, max_examples=8)
@given(
    st.integers(0, 1000), st.integers(1, 8), st.booleans(), st.sampled_from(["channel", "tensor"])
)
def test_zeros_and_grids_hold_to_the_bit(seed: int, bits: int, symmetric: bool, per: str) -> None:
    model = network(seed)
    conv, linear = model[0], model[3]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    assert conv.bias is not None
    mask = torch.rand(conv.weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    options = GridOptions(per=per, symmetric=symmetric)  # type: ignore[arg-type]
    grids = {}
    with torch.no_grad():
        conv.weight *= mask
        for name, layer in (("0", conv), ("3", linear)):
            grids[name] = fit_grid(layer.weight.flatten(1), bits, options)
            layer.weight.copy_(
                grids[name].nearest(layer.weight.flatten(1)).reshape(layer.weight.shape)
            )
    stitched = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(2))
    expected = model(x)
    with held(model, {"0": Hold(mask, grids["0"]), "3": Hold(None, grids["3"])}) as found:
        torch.testing.assert_close(model(x), expected)
        train(model)
    assert sorted(model.state_dict()) == sorted(stitched)
    assert isinstance(conv.weight, nn.Parameter)
    assert not torch.equal(conv.bias, stitched["0.bias"])
    assert not (conv.weight[~mask] != 0).any()
    for name, layer in (("0", conv), ("3", linear)):
        grid, weight = found[name], layer.weight.detach().flatten(1)
        assert torch.equal(grid.values(grid.codes(weight)), weight)
        assert torch.equal(grid.zero, grids[name].zero)


def test_without_a_grid_the_free_weights_train_and_the_others_stay() -> None:
    model = network(0)
    mask = (
        torch.rand(
            model.get_parameter("3.weight").shape, generator=torch.Generator().manual_seed(0)
        )
        < 0.3
    )
    with torch.no_grad():
        model.get_parameter("3.weight").mul_(mask)
    before = model.get_parameter("3.weight").detach().clone()
    with held(model, {"3": Hold(mask)}) as found:
        train(model)
    assert found == {}
    after = model.get_parameter("3.weight")
    assert torch.equal(after != 0, mask)
    assert (after != before)[mask].float().mean() > 0.9


def test_an_error_leaves_plain_weights() -> None:
    model = network(0)
    mask = torch.ones_like(model.get_parameter("0.weight"), dtype=torch.bool)
    with pytest.raises(KeyboardInterrupt), held(model, {"0": Hold(mask)}):
        raise KeyboardInterrupt
    assert "0.weight" in model.state_dict()


def test_the_scales_gradient_is_lsqs() -> None:
    """Equation 3, and the gradient's scale 1 / sqrt(N Q) of section 2.2."""
    layer = nn.Linear(40, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-3, 2.9, 40)[None])
    model = nn.Sequential(layer)
    grid = fit_grid(layer.weight.detach().clamp(-1, 1), 3, GridOptions(fit="minmax"))
    v, s, z = layer.weight.detach().clone(), grid.scale, grid.zero
    with held(model, {"0": Hold(None, grid)}):
        model(torch.eye(40)).sum().backward()
        made = model.get_parameter("0.parametrizations.weight.0.scale").grad
        raw = model.get_parameter("0.parametrizations.weight.original").grad
    assert made is not None
    assert raw is not None
    code = v / s + z
    inside = (code.round() >= 0) & (code.round() <= 7)
    expected = (
        torch.where(inside, code.round() - code, code.round().clamp(0, 7) - z).sum()
        / (40 * 7) ** 0.5
    )
    torch.testing.assert_close(made.sum(), expected)
    assert torch.equal(raw != 0, inside)


def test_activations_let_gradients_through_in_their_range() -> None:
    grid = ActivationGrid(2, 0.5, 1)  # -0.5 .. 1.0
    x = torch.tensor([-2.0, -0.6, 0.1, 0.9, 1.2, 3.0], requires_grad=True)
    y = grid(x)
    assert torch.equal(y.detach(), grid(x.detach()))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("bits", [None, 3])
def test_a_shared_weight_stays_shared(bits: int | None) -> None:
    torch.manual_seed(0)
    first, between, last = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)
    last.weight = first.weight
    model = nn.Sequential(first, between, last)
    mask = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.7
    grid = fit_grid(first.weight.detach() * mask, bits, GridOptions()) if bits else None
    with torch.no_grad():
        first.weight.copy_((grid.nearest(first.weight) if grid else first.weight) * mask)
    before = first.weight.detach().clone()
    generator = torch.Generator().manual_seed(1)
    with held(model, {"0": Hold(mask, grid)}) as found:
        parameters = list(model.parameters())
        assert len(parameters) == (
            4 if bits else 3
        )  # the weight once, two biases, and the grid's scale once
        optimizer = torch.optim.SGD(parameters, 0.1)
        for _ in range(20):
            optimizer.zero_grad()
            (model(torch.randn(8, 6, generator=generator)) - 1).square().mean().backward()
            optimizer.step()
        assert torch.equal(first.weight, last.weight)
    assert first.weight is last.weight
    assert not torch.equal(first.weight, before)
    assert not (first.weight[~mask] != 0).any()
    if bits:
        trained = found["0"]
        assert torch.equal(
            trained.values(trained.codes(first.weight.detach())) * mask, first.weight
        )
