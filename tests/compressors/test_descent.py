"""Coordinate descent on grids, and the best of several starts."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apportion.compressors.elimination import descent, dispatch
from apportion.compressors.grids import GridOptions, fit_weights
from apportion.compressors.grids.grid import Grid
from apportion.compressors.levels import parse_level
from apportion.compressors.obs import compress_layer
from tests.compressors.problems import linear, problem


def errors(weight: Tensor, q: Tensor, hessian: Tensor) -> Tensor:
    return (((q - weight) @ hessian) * (q - weight)).sum(1) / 2


def on_grid(level: str, weight: Tensor) -> Grid:
    quantization = parse_level(level).quantization
    assert quantization is not None
    return fit_weights(weight, quantization, GridOptions())


LEVELS = st.sampled_from(["w2", "w3", "w3g16", "w4g32", "mxfp4", "nvfp4", "fp8", "q4_0", "q4_1"])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 5), LEVELS)
def test_no_single_move_makes_it_better_and_zeros_stay(seed: int, rows: int, level: str) -> None:
    weight, hessian = problem(seed, rows, 160)
    hessian[3] = hessian[:, 3] = 0  # a dead column
    fixed = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    grid = on_grid(level, weight)
    start = grid.nearest(weight) * ~fixed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(descent, "PASSES", 10_000)  # until none moves
        both = [
            descend(weight, start, hessian, grid, fixed)
            for descend in (descent.descend, dispatch.descend)
        ]
    for made in both:
        assert (made[fixed] == 0).all()
        assert torch.equal(made[:, 3], start[:, 3])
        torch.testing.assert_close(grid.nearest(made) * ~fixed, made)
        before, after = errors(weight, start, hessian), errors(weight, made, hessian)
        assert (after <= before * (1 + 1e-9)).all()
        slope = (made - weight) @ hessian
        best = grid.nearest(made - slope / hessian.diagonal().clamp(min=1e-30)) - made
        change = best * (slope + best * hessian.diagonal() / 2)
        assert (change[~fixed] >= -1e-9 * before.max()).all()


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000), LEVELS)
def test_the_compiled_loop_is_plain_torch(seed: int, level: str) -> None:
    weight, hessian = problem(seed, 6, 160)
    grid, none = on_grid(level, weight), torch.zeros(weight.shape, dtype=torch.bool)
    start = grid.nearest(weight)
    plain = descent.descend(weight, start, hessian, grid, none)
    for threads in (1, 2):
        fast = dispatch.descend(
            weight, start, hessian, grid, none, dispatch.Limits(threads=threads)
        )
        torch.testing.assert_close(fast, plain, rtol=1e-6, atol=1e-9)


def test_it_finds_most_optima_of_small_rows() -> None:
    """Five weights of two bits: 1,024 candidates a row."""
    weight, hessian = problem(3, 40, 5)
    levels = [parse_level("w2"), parse_level("gptq:w2")]
    ours, gptq = compress_layer(weight, linear(40, 5), hessian[None], levels)
    assert ours.grid is not None
    codes = torch.tensor(list(itertools.product(range(4), repeat=5)), dtype=torch.float32)
    scale, zero = ours.grid.scale[:, :, None], ours.grid.zero[:, :, None]
    every = (scale * (codes[None] - zero)).double() - weight[:, None]
    least = ((every @ hessian) * every).sum(2).amin(1) / 2
    found, theirs = (errors(weight, one.weight.double(), hessian) for one in (ours, gptq))
    assert (found <= least * (1 + 1e-6)).double().mean() > 0.75
    assert float(found.sum() / least.sum()) < 1.1 < float(theirs.sum() / least.sum())


@pytest.mark.parametrize("level", ["w3", "2:4+w3", "w3g16", "nvfp4", "q4_0", "q4_1"])
def test_no_row_is_worse_than_by_either_order(level: str) -> None:
    weight, hessian = problem(5, 8, 64)
    hessian[:8] *= 30  # a few large inputs, as language models have them
    hessian[:, :8] *= 30
    sparse, _, quantized = level.rpartition("+")
    down = f"{sparse}{'+' * bool(sparse)}gptq-desc:{quantized}"
    levels = [parse_level(level), parse_level(down)]
    ours, theirs = compress_layer(weight, linear(8, 64), hessian[None], levels)
    mine, other = (errors(weight, one.weight.double(), hessian) for one in (ours, theirs))
    assert (mine <= other * (1 + 1e-6)).all()
    assert mine.sum() < 0.99 * other.sum()
    assert theirs.grid is not None
    zeros = theirs.weight == 0
    hinv = torch.linalg.inv(hessian)
    if not sparse:
        own = dispatch.quantize(weight, hinv, theirs.grid, torch.zeros_like(zeros))
        assert (mine <= errors(weight, own, hessian) * (1 + 1e-6)).all()
