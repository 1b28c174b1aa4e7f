"""ExactOBS on CUDA against the CPU's: same choices, same weights up to rounding."""

import pytest
import torch
from torch import nn

from apportion.compressors.calibration import over
from apportion.compressors.elimination import dispatch, factored
from apportion.compressors.grids import fit_grid
from apportion.compressors.hessian import collect_hessians
from apportion.compressors.layers import LayerSpec
from apportion.compressors.levels import parse_level
from apportion.compressors.obs import compress_layer, layer_error
from tests.compressors.problems import layers_of, linear, problem

LEVELS = [
    *("unstr-0.50", "unstr-0.90", "2:4", "4:8", "block4-0.50", "filter-0.50", "w4", "w3", "w2"),
    *("2:4+w4", "unstr-0.50+w4", "mag:2:4", "mag:unstr-0.75", "rtn:w4"),
    *("w3g16", "2:4+w4g8", "nvfp4", "fp8", "gptq:w3g16", "gptq-desc:w3", "sparsegpt:2:4"),
    *("q4_0", "2:4+q5_1", "gptq:q4_1"),
]


@pytest.mark.parametrize("columns", [48, 1280])
@pytest.mark.parametrize("text", LEVELS)
def test_every_kind_is_that_of_the_cpu(text: str, columns: int) -> None:
    """In double precision to rounding; in single precision (beyond 1,152 columns) near-ties may
    change places, and errors agree."""
    weight, hessian = problem(3, 8, columns)
    spec, level = linear(8, columns), [parse_level(text)]
    (cpu,) = compress_layer(weight, spec, hessian[None], level)
    (gpu,) = compress_layer(weight.cuda(), spec, hessian[None].cuda(), level)
    if columns <= 1152:
        torch.testing.assert_close(gpu.weight.cpu(), cpu.weight, rtol=1e-5, atol=1e-6)
    assert gpu.error == pytest.approx(cpu.error, rel=1e-6 if columns <= 1152 else 5e-2)
    measured = layer_error(gpu.weight.cpu().double() - weight, hessian[None])
    assert gpu.error == pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
@pytest.mark.parametrize("columns", [64, 257, 576])
def test_the_kernel_chooses_as_plain_torch(columns: int, kind: torch.dtype) -> None:
    """The Triton kernel, which `dispatch` takes here, step by step."""
    weight, hessian = problem(7, 16, columns)
    w = weight.to("cuda", kind)
    hinv = torch.linalg.inv(hessian).to("cuda", kind)
    order, losses = dispatch.eliminate(w, hinv)
    plain_order, plain_losses = factored.eliminate(w, hinv)
    assert order.is_cuda
    if kind == torch.float64:
        assert torch.equal(order, plain_order)
    torch.testing.assert_close(
        losses.sum(1), plain_losses.sum(1), rtol=1e-9 if kind == torch.float64 else 1e-2, atol=0
    )
    grid, free = fit_grid(w, 4), torch.zeros_like(w, dtype=torch.bool)
    made = dispatch.quantize(w, hinv, grid, free)
    if kind == torch.float64:
        torch.testing.assert_close(made, factored.quantize(w, hinv, grid, free))
    torch.testing.assert_close(grid.nearest(made), made, rtol=1e-6, atol=1e-7)


def test_it_runs_as_a_kernel() -> None:
    """Not silently in plain torch, some ten times slower."""
    from apportion.compressors.elimination import fused

    assert fused.works_on(torch.device("cuda"))


@pytest.mark.parametrize("traced", [False, True])
def test_hessians_are_those_of_the_cpu(traced: bool) -> None:
    torch.manual_seed(0)
    if traced:
        model: nn.Module = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
        x = torch.randn(6, 5, 16)
    else:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
        x = torch.randn(6, 3, 8, 8)
    layers: list[LayerSpec] = layers_of(model, x)
    cpu = collect_hessians(model, layers, over(x))
    torch.backends.cudnn.allow_tf32 = False
    gpu = collect_hessians(model.cuda(), layers, over(x).on("cuda"))
    assert len(layers) >= 2
    for name, hessian in cpu.items():
        assert gpu[name].is_cuda
        torch.testing.assert_close(gpu[name].cpu(), hessian, rtol=1e-4, atol=1e-5)
