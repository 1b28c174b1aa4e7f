"""Models as ONNX, run in ONNX Runtime: grids that batch-norm stretched, weights that layers share,
inputs of any rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed (the extra onnx)")

from apportion.compressors.activations import ActivationGrid, quantize_input
from apportion.compressors.errors import ModelError
from apportion.compressors.grids import GridOptions, fit_grid
from apportion.evaluators.rewriting import onnx_model
from apportion.evaluators.rewriting.onnx_model import Quantized

INPUT = ActivationGrid(8, 0.05, 128)


def on_grid(layer: nn.Linear, bits: int = 8) -> Quantized:
    grid = fit_grid(layer.weight.detach(), bits, GridOptions(symmetric=True))
    layer.weight.data = grid.values(grid.codes(layer.weight.detach()))
    return Quantized(grid, INPUT)


def agree(model: nn.Module, inputs: Tensor, what: dict[str, Quantized]) -> Any:
    """Run the exported model beside torch's, whose inputs are quantized by hooks; returns the
    exported one."""
    proto = onnx_model.to_onnx(model, inputs, what)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, quantized in what.items():
        quantize_input(modules[name], quantized.activation)
    with torch.no_grad():
        torch.testing.assert_close(
            onnx_model.run(onnx_model.session(proto, 1), inputs),
            model(inputs),
            rtol=1e-4,
            atol=1e-4,
        )
    return proto


def test_linear_layers_on_inputs_with_leading_dimensions() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(8, 6), nn.Linear(6, 3)
    model = nn.Sequential(first, nn.LayerNorm(6), nn.ReLU(), second).eval()
    proto = agree(model, torch.randn(4, 5, 8), {"0": on_grid(first), "3": on_grid(second)})
    assert [node.op_type for node in proto.graph.node].count("QuantizeLinear") == 2


def test_layers_that_share_a_weight_are_quantized_each() -> None:
    torch.manual_seed(1)
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    what = on_grid(first)
    second.weight = first.weight
    proto = agree(
        nn.Sequential(first, nn.ReLU(), second).eval(), torch.randn(4, 6), {"0": what, "2": what}
    )
    assert sum(len(codes.dims) == 2 for codes in proto.graph.initializer) == 1  # stored once


def test_a_layer_called_twice_by_two_names() -> None:
    torch.manual_seed(2)
    layer = nn.Linear(6, 6)
    what = on_grid(layer)
    proto = agree(
        nn.Sequential(layer, nn.ReLU(), layer).eval(), torch.randn(4, 6), {"0": what, "2": what}
    )
    assert [node.op_type for node in proto.graph.node].count("QuantizeLinear") == 2


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_folded_batchnorm_keeps_codes_even_of_rows_that_it_turns_over(
    symmetric: bool, per: Any, bits: int
) -> None:
    torch.manual_seed(bits)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    ).eval()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.weight.data = torch.linspace(-2, 2, 8)
    norm.running_mean, norm.running_var = torch.randn(8), torch.rand(8) + 0.1
    what = {}
    for name in ("0", "4"):
        layer = model[int(name)]
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        flat = layer.weight.detach().flatten(1)
        grid = fit_grid(flat, bits, GridOptions(per=per, symmetric=symmetric))
        layer.weight.data = grid.values(grid.codes(flat)).reshape(layer.weight.shape)
        what[name] = Quantized(grid)
    inputs = torch.randn(4, 3, 4, 4)
    proto = onnx_model.to_onnx(model, inputs, what)
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    with torch.no_grad():
        torch.testing.assert_close(
            onnx_model.run(onnx_model.session(proto, 1), inputs),
            model(inputs),
            rtol=1e-4,
            atol=1e-5,
        )


def test_what_onnx_cannot_say_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    with pytest.raises(ModelError, match="layer '0'.*up to 8 bits, its input has 12"):
        onnx_model.to_onnx(
            model, torch.randn(2, 4), {"0": Quantized(activation=ActivationGrid(12, 0.1, 0))}
        )
    with pytest.raises(ModelError, match="layer 'no': the model has none of that name"):
        onnx_model.to_onnx(
            model, torch.randn(2, 4), {"no": Quantized(activation=ActivationGrid(8, 0.1, 0))}
        )
    grid = fit_grid(torch.randn(4, 4), 2)
    with pytest.raises(ModelError, match="do not lie on their grid"):
        onnx_model.to_onnx(model, torch.randn(2, 4), {"0": Quantized(grid)})


def test_activations_of_few_bits_are_clipped_to_their_grid() -> None:
    layer = nn.Sequential(nn.Linear(1, 1, bias=False)).eval()
    assert isinstance(layer[0], nn.Linear)
    layer[0].weight.data = torch.ones(1, 1)
    grid = ActivationGrid(3, 0.5, 2)  # -1.0, -0.5, ... 2.5
    inputs = torch.tensor([[-9.0], [-0.6], [0.2], [9.0]])
    ours = onnx_model.run(
        onnx_model.session(onnx_model.to_onnx(layer, inputs, {"0": Quantized(activation=grid)}), 1),
        inputs,
    )
    quantize_input(layer[0], grid)
    assert ours.tolist() == layer(inputs).tolist() == [[-1.0], [-0.5], [0.0], [2.5]]
