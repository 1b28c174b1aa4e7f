"""Exported ONNX files give the same products on every processor, also on one whose 16-bit sums
saturate."""

from __future__ import annotations

import itertools
import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed (the extra onnx)")

from apportion.compressors.activations import ActivationGrid, quantize_input
from apportion.compressors.grids import GridOptions, fit_grid
from apportion.evaluators.rewriting import onnx_model
from apportion.evaluators.rewriting.onnx_model import Quantized
from apportion.evaluators.rewriting.processor import instructions
from tests.evaluators.saturating import products, vpmaddubsw


class Net(nn.Module):
    """Convolutions dense, strided, grouped and depthwise, then linear layers on a matrix and on
    three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, stride=2, groups=2),
        )
        self.depthwise, self.token, self.head = (
            nn.Conv2d(8, 8, 3, groups=8),
            nn.Linear(4, 6),
            nn.Linear(48, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.grouped(self.stem(x).relu()).relu()).relu()
        out: torch.Tensor = self.head(self.token(x.flatten(2)).relu().flatten(1))
        return out


def quantized(model: nn.Module, bits: int, grid: ActivationGrid) -> dict[str, Quantized]:
    what = {}
    for name, layer in model.named_children():
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        flat = layer.weight.detach().flatten(1)
        flat[:] = torch.where(
            torch.rand_like(flat) < 0.5, flat.abs().amax(1, keepdim=True), flat
        )  # many large codes
        found = fit_grid(flat, bits, GridOptions(symmetric=True))
        layer.weight.data = found.values(found.codes(flat)).reshape(layer.weight.shape)
        what[name] = Quantized(found, grid)
    return what


@pytest.mark.parametrize(("bits", "inputs"), list(itertools.product((4, 7, 8), (4, 7, 8))))
def test_no_product_of_a_file_saturates(bits: int, inputs: int) -> None:
    torch.manual_seed(10 * bits + inputs)
    model, grid = Net().eval(), ActivationGrid(inputs, 2.0**-inputs, 0)
    what, images = (
        quantized(model, bits, grid),
        4 * torch.rand(4, 3, 9, 9),
    )  # most inputs at the top of their grid
    proto = onnx_model.to_onnx(model, images, what)
    found = list(products(proto, images))
    assert len({one.layer for one in found}) == len(what)
    for one in found:
        np.testing.assert_array_equal(one.there, one.exact, err_msg=one.layer)
    for name, layer in model.named_children():
        quantize_input(layer, what[name].activation)
    with torch.no_grad():
        difference = (onnx_model.run(onnx_model.session(proto, 1), images) - model(images)).abs()
    assert (
        float(difference.mean()) < 1e-2
    )  # as the file runs here; rounding to a grid may turn a last bit into a step


def test_weights_that_meet_no_quantized_inputs_or_cannot_saturate_stay_int8() -> None:
    torch.manual_seed(0)
    seven, eight = ActivationGrid(7, 0.05, 0), ActivationGrid(8, 0.05, 0)
    for bits, activation, kind in (
        (8, None, "int8"),
        (7, eight, "int8"),
        (8, seven, "int8"),
        (8, eight, "uint8"),
    ):
        model = nn.Sequential(nn.Linear(6, 4)).eval()
        weight = quantized(model, bits, eight)["0"].weight
        proto = onnx_model.to_onnx(model, torch.rand(2, 6), {"0": Quantized(weight, activation)})
        (codes,) = [
            onnx.numpy_helper.to_array(one) for one in proto.graph.initializer if len(one.dims) == 2
        ]
        assert codes.dtype == kind, (bits, activation)


def test_a_weight_shared_by_layers_with_and_without_quantized_inputs() -> None:
    torch.manual_seed(1)
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    model = nn.Sequential(first, nn.ReLU(), second).eval()
    weight = quantized(nn.Sequential(first), 8, ActivationGrid(8, 0.05, 0))["0"].weight
    second.weight = first.weight
    inputs, grid = torch.rand(4, 6), ActivationGrid(8, 2.0**-8, 0)
    proto = onnx_model.to_onnx(
        model, inputs, {"0": Quantized(weight, grid), "2": Quantized(weight)}
    )
    assert all((one.there == one.exact).all() for one in products(proto, inputs))
    quantize_input(first, grid)
    with torch.no_grad():
        torch.testing.assert_close(
            onnx_model.run(onnx_model.session(proto, 1), inputs),
            model(inputs),
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="names x86's instructions"
)
def test_a_processor_is_named_by_the_instructions_that_decide(tmp_path: Path) -> None:
    told = {
        "avx avx2": "AVX2, no VNNI",
        "avx avx2 avx_vnni": "AVX2, VNNI",
        "avx avx2 avx512f avx512bw": "AVX-512, no VNNI",
        "avx avx2 avx512f avx512bw avx512_vnni": "AVX-512, VNNI",
        "ssse3": "SSSE3, no VNNI",
    }
    for flags, name in told.items():
        (tmp_path / "cpuinfo").write_text(f"model name : x\nflags\t\t: fpu {flags} sse2\n")
        assert instructions(tmp_path / "cpuinfo") == name
    assert instructions(tmp_path / "none").endswith("VNNI unknown")


def test_vpmaddubsw_cuts_the_sum_of_two_neighbours() -> None:
    inputs = np.array([[255, 255, 255, 255, 255]])
    assert vpmaddubsw(inputs, np.array([[127, 127, 1, 0, -128]])).tolist() == [
        [2**15 - 1 + 255 - 255 * 128]
    ]
    assert vpmaddubsw(inputs, np.array([[-128, -128, 64, 64, 127]])).tolist() == [
        [-(2**15) + 255 * 128 + 255 * 127]
    ]
