"""GPTQ and SparseGPT: eliminations in one order for all rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apportion.compressors.activations import ActivationGrid
from apportion.compressors.elimination import fixed
from apportion.compressors.grids import Grid, fit_grid
from apportion.compressors.levels import parse_level
from apportion.compressors.obs import compress_layer, layer_error
from tests.compressors.problems import linear, problem


def textbook(weight: Tensor, hinv: Tensor, grid: Grid, zeros: Tensor) -> Tensor:
    """Column after column by equation 3 and lemma 1 of Optimal Brain Compression, H^-1 updated as
    they say."""
    w, h, result = weight.clone(), hinv.clone(), torch.zeros_like(weight)
    for i in range(weight.shape[1]):
        to = grid.nearest(w)[:, i] * ~zeros[:, i]
        result[:, i] = to
        w -= ((w[:, i] - to) / h[i, i])[:, None] * h[i]
        h = h - torch.outer(h[:, i], h[i]) / h[i, i]
    return result


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 1000), st.integers(1, 5), st.sampled_from([1, 7, 128, 200]), st.integers(2, 4)
)
def test_batches_change_nothing(seed: int, rows: int, d: int, bits: int) -> None:
    weight, hessian = problem(seed, rows, d)
    hinv = torch.linalg.inv(hessian + 0.1 * torch.eye(d))
    zeros = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    grid = fit_grid(weight, bits)
    ours, _ = fixed.quantize(weight, fixed.factor(hinv), grid, zeros)
    torch.testing.assert_close(ours, textbook(weight, hinv, grid, zeros), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("level", ["w3", "w3g16", "mxfp4", "nvfp4", "fp8", "q4_0", "q4_1"])
def test_an_identity_hessian_rounds_to_nearest(level: str) -> None:
    weight, _ = problem(8, 6, 160)
    eye = torch.eye(160, dtype=torch.float64)[None]
    levels = [parse_level(how + level) for how in ("rtn:", "gptq:", "gptq-desc:")]
    nearest, *others = compress_layer(weight, linear(6, 160), eye, levels)
    for made in others:
        assert torch.equal(made.weight, nearest.weight)


def test_an_identity_hessian_prunes_by_magnitude() -> None:
    weight, _ = problem(8, 6, 128)
    eye = torch.eye(128, dtype=torch.float64)[None]
    for pattern in ("2:4", "unstr-0.60"):  # of 128 columns the mask is chosen once
        levels = [parse_level(how + pattern) for how in ("mag:", "sparsegpt:")]
        free, made = compress_layer(weight, linear(6, 128), eye, levels)
        assert torch.equal(made.weight, free.weight)


@pytest.mark.parametrize("d", [64, 300])
@pytest.mark.parametrize(
    "level",
    ["w3", "w4a8", "w2g4", "nvfp4", "unstr-0.50", "2:4", "sparsegpt:2:4+gptq:w4"],
)
def test_it_is_better_than_what_is_free_and_keeps_its_pattern(d: int, level: str) -> None:
    if level == "nvfp4":
        d = 64
    weight, _ = problem(3, 8, d)
    at = torch.arange(d, dtype=torch.float64)
    hessian = 0.8 ** (at[:, None] - at).abs()  # inputs that resemble their neighbours
    spec = linear(8, d)
    if "+" in level:
        texts = [level, "mag:2:4+rtn:w4"]
    elif level.startswith(("w", "nv")):
        texts = [f"gptq:{level}", f"gptq-desc:{level}", f"rtn:{level}"]
    else:
        texts = [f"sparsegpt:{level}", f"mag:{level}"]
    levels = [parse_level(text) for text in texts]
    grids = {8: ActivationGrid(8, 0.1, 128)}
    *ours, free = compress_layer(weight, spec, hessian[None], levels, activations=grids)
    for made in ours:
        assert made.error < free.error
        error = layer_error(made.weight.double() - weight.float().double(), hessian[None])
        assert made.error == pytest.approx(error)
        if made.grid is not None:
            kept = made.weight != 0
            on = made.grid.values(made.grid.codes(made.weight))
            assert torch.equal(on[kept], made.weight[kept])
        sparsity = made.level.sparsity
        if sparsity is not None and sparsity.kind == "nm":
            assert int((made.weight.reshape(-1, 4) != 0).sum(1).max()) <= 2
        elif sparsity is not None:
            assert int((made.weight == 0).sum()) == sparsity.removed(weight.numel())


def test_groups_of_a_convolution_have_their_own_hessians() -> None:
    weight, _ = problem(4, 6, 32)
    hessians = torch.stack([problem(seed, 1, 32)[1] for seed in (1, 2, 3)])
    whole = linear(6, 32)
    spec = type(whole)("layer", "conv1d", (6, 32), 3, 6, 32)
    for text in ("gptq:w3g8", "gptq-desc:w3", "sparsegpt:2:4", "gptq:w3"):
        (made,) = compress_layer(weight, spec, hessians, [parse_level(text)])
        alone = [
            next(compress_layer(w, linear(2, 32), h[None], [parse_level(text)])).weight
            for w, h in zip(weight.chunk(3), hessians, strict=True)
        ]
        assert torch.equal(made.weight, torch.cat(alone))


def test_dead_columns_are_zero() -> None:
    weight, hessian = problem(4, 6, 32)
    hessian[:, :3] = hessian[:3] = 0
    for text in ("gptq:w3", "gptq-desc:w3g8", "sparsegpt:unstr-0.50"):
        (made,) = compress_layer(weight, linear(6, 32), hessian[None], [parse_level(text)])
        assert not made.weight[:, :3].any()
        assert made.error > 0
