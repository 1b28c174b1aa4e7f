from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from apportion.compressors.calibration import over
from apportion.compressors.errors import LayerError
from apportion.compressors.hessian import collect_hessians, inverse
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.layers import from_matrix, to_matrix
from tests.compressors.problems import layers_of

Layer = nn.Conv1d | nn.Conv2d | nn.Linear


@st.composite
def modules(draw: st.DrawFn) -> tuple[Layer, tuple[int, ...]]:
    """A random Conv1d, Conv2d or Linear, and the shape of one input."""
    kind = draw(st.sampled_from(["conv1d", "conv2d", "linear"]))
    if kind == "linear":
        inputs, extra = draw(st.integers(1, 6)), draw(st.sampled_from([(), (3,), (2, 3)]))
        return nn.Linear(inputs, draw(st.integers(1, 5))), (*extra, inputs)
    groups = draw(st.integers(1, 3))
    channels = groups * draw(st.integers(1, 3))
    padding = draw(st.sampled_from([0, 1, 2, "same", "valid"]))
    options: dict[str, Any] = {
        "kernel_size": draw(st.integers(1, 3)),
        "stride": 1 if padding == "same" else draw(st.integers(1, 2)),
        "padding": padding,
        "dilation": draw(st.integers(1, 2)),
        "groups": groups,
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "circular"])),
    }
    outputs = groups * draw(st.integers(1, 3))
    if kind == "conv1d":
        return nn.Conv1d(channels, outputs, **options), (channels, 9)
    return nn.Conv2d(channels, outputs, **options), (channels, 7, 6)


def outputs_of(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = module.double()(x)
    return found


@settings(deadline=None, max_examples=80)
@given(modules(), st.integers(0, 2**31))
def test_the_hessian_is_that_of_the_squared_change_of_the_output(
    case: tuple[Layer, tuple[int, ...]], seed: int
) -> None:
    """1/2 tr(dW H dW^T) = mean over samples of |f_{W + dW}(x) - f_W(x)|^2, whatever the layer does
    with its input."""
    module, shape = case
    module = module.double()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    model = nn.Sequential(module)
    (spec,) = layers_of(model, x)
    hessian = collect_hessians(model, [spec], over(x[:2], x[2:]))["0"]
    assert hessian.shape == (spec.groups, spec.columns, spec.columns)
    before = outputs_of(module, x)
    change = torch.randn(module.weight.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        module.weight += change
    moved = float(((outputs_of(module, x) - before) ** 2).sum() / 5)
    d = to_matrix(change, spec).reshape(spec.groups, -1, spec.columns)
    assert 0.5 * float((d @ hessian * d).sum()) == pytest.approx(moved, rel=1e-9)
    assert torch.equal(from_matrix(to_matrix(change, spec), spec), change)


@settings(deadline=None, max_examples=40)
@given(modules())
def test_macs_count_the_matrix_product(case: tuple[Layer, tuple[int, ...]]) -> None:
    module, shape = case
    model = nn.Sequential(module)
    x = torch.randn(3, *shape)
    found = find_layers(model, over(x))
    positions = model(x)[0].numel() // found.layers[0].rows
    assert found.macs == {"0": positions * module.weight.numel()}
    assert found.base == 0


def test_columns_run_channel_last() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 2))
    (spec,) = layers_of(model, torch.randn(1, 3, 4, 4))
    weight = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert to_matrix(weight, spec)[0, :6].tolist() == [0, 4, 8, 1, 5, 9]


def test_streaming_equals_one_batch() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
    x = torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    layers = layers_of(model, x)
    whole = collect_hessians(model, layers, over(x))
    parts = collect_hessians(model, layers, over(x[:5], x[5:6], x[6:]))
    for name, hessian in whole.items():
        torch.testing.assert_close(
            parts[name], hessian, rtol=1e-4, atol=1e-6
        )  # the float32 activations depend on the batch
        assert hessian.dtype == torch.float64
    assert not model[0]._forward_pre_hooks


def test_tied_weights_are_one_layer_with_the_inputs_of_both() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    model, x = Tied(), torch.randn(6, 4)
    found = find_layers(model, over(x))
    (spec,) = found.layers
    assert (spec.name, spec.aliases) == ("a", ("b",))
    with torch.no_grad():
        both = torch.cat([x, model.a(x)]).double()
    hessian = collect_hessians(model, [spec], over(x))["a"][0]
    torch.testing.assert_close(hessian, 2 * both.T @ both / 6)
    assert found.macs == {"a": 32}


def test_a_hessian_that_is_not_finite_names_its_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    layers = layers_of(model, torch.zeros(1, 2))
    with pytest.raises(LayerError, match="layer '0': its Hessian is not finite"):
        collect_hessians(model, layers, over(torch.full((1, 2), float("nan"))))
    assert not model[0]._forward_pre_hooks


def test_dead_columns_are_left_out_and_singular_hessians_damped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 1] = 0
    h = 2 * x.T @ x
    hinv, alive = inverse(h, 0.0, "conv")
    assert alive.tolist() == [True, False, True, True]
    torch.testing.assert_close(hinv, torch.linalg.inv(h[alive][:, alive]))
    assert not caplog.records
    x[:, 3] = x[:, 2]
    singular, _ = inverse(2 * x.T @ x, 0.0, "conv")
    assert torch.isfinite(singular).all()
    assert "layer conv: singular Hessian, damped by" in caplog.text


def test_damping_adds_a_share_of_the_mean_diagonal() -> None:
    h = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    hinv, _ = inverse(h, 0.5)
    torch.testing.assert_close(hinv.diagonal(), torch.tensor([1 / 2, 1 / 4], dtype=torch.float64))
