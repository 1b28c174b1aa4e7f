"""Levels of one layer: their patterns, and their least errors."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apportion.compressors.calibration import over
from apportion.compressors.elimination import dispatch
from apportion.compressors.errors import LayerError, LevelError
from apportion.compressors.hessian import collect_hessians
from apportion.compressors.layers import LayerSpec, to_matrix
from apportion.compressors.levels import expand_levels, parse_level
from apportion.compressors.obs import compress_layer, layer_error
from tests.compressors.problems import layers_of, linear, problem


def test_an_identity_hessian_rounds_to_nearest_and_prunes_by_magnitude() -> None:
    weight, _ = problem(8)
    eye = torch.eye(12, dtype=torch.float64)[None]
    pairs = [
        ("w4", "rtn:w4"),
        ("2:4", "mag:2:4"),
        ("block4-0.50", "mag:block4-0.50"),
        ("2:4+w4", "mag:2:4+rtn:w4"),
    ]
    for exact, free in pairs:
        made = list(
            compress_layer(weight, linear(6, 12), eye, [parse_level(exact), parse_level(free)])
        )
        assert torch.equal(made[0].weight, made[1].weight)


def test_a_pattern_that_removes_nothing_is_dense() -> None:
    weight, hessian = problem(9)
    levels = [parse_level(text) for text in ("4:4", "4:4+w4", "w4")]
    nothing, joint, quantized = compress_layer(weight, linear(6, 12), hessian[None], levels)
    assert torch.equal(nothing.weight, weight.float())
    torch.testing.assert_close(joint.weight, quantized.weight)


def test_levels_of_one_pattern_share_its_elimination(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = problem(10)
    levels = [parse_level(text) for text in ("2:4", "2:4+w4", "1:2")]
    alone = [
        next(compress_layer(weight, linear(6, 12), hessian[None], [level])).weight
        for level in levels
    ]
    made: list[tuple[int, int]] = []
    prune = dispatch.prune_n_of_m

    def noting(*given: Any) -> Any:
        made.append(given[2:4])
        return prune(*given)

    monkeypatch.setattr(dispatch, "prune_n_of_m", noting)
    together = list(compress_layer(weight, linear(6, 12), hessian[None], levels))
    assert made == [(2, 4), (1, 2)]
    assert all(torch.equal(one.weight, other) for one, other in zip(together, alone, strict=True))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2))
def test_every_kind_has_the_pattern_it_promises(
    seed: int, rows: int, eights: int, dead: int
) -> None:
    d = 8 * eights
    weight, hessian = problem(seed, rows, d)
    hessian[:, :dead] = hessian[:dead, :] = 0
    texts = [
        "2:4",
        "4:8",
        "1:2",
        "block4-0.50",
        "mag:2:4",
        "2:4+w3",
        "unstr-0.75+w8",
        "mag:block4-0.50+rtn:w2",
        "w2",
        "w1",
    ]
    for made in compress_layer(
        weight, linear(rows, d), hessian[None], [parse_level(text) for text in texts]
    ):
        sparsity, matrix = made.level.sparsity, made.weight
        if sparsity is not None and sparsity.kind == "nm":
            assert int((matrix.reshape(-1, sparsity.m) != 0).sum(1).max()) <= sparsity.n
        elif sparsity is not None and sparsity.kind == "block":
            assert int((matrix.reshape(-1, sparsity.block) == 0).all(1).sum()) >= rows * d / 8
        elif sparsity is not None:
            assert int((matrix == 0).sum()) >= 0.75 * rows * d
        if made.grid is not None:
            kept = matrix != 0
            on_grid = made.grid.values(made.grid.codes(matrix))
            assert torch.equal(on_grid[kept], matrix[kept])
            assert all(len(row.unique()) <= 2**made.grid.bits + 1 for row in matrix)
        assert made.error == pytest.approx(
            layer_error(matrix.double() - weight.float().double(), hessian[None]), abs=1e-9
        )


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10_000),
    st.sampled_from([(8, 8, 1), (16, 8, 2), (16, 16, 4), (8, 8, 8), (6, 9, 3)]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.booleans(),
)
def test_convolutions_of_all_shapes_keep_their_patterns(
    seed: int, channels: tuple[int, int, int], kernel: int, stride: int, dilation: int, flat: bool
) -> None:
    """Groups, depthwise, stride, dilation, 'same' padding, Conv1d and Conv2d: the patterns run
    channel last."""
    torch.manual_seed(seed)
    inside, outside, groups = channels
    kind = nn.Conv1d if flat else nn.Conv2d
    conv: nn.Conv1d | nn.Conv2d = kind(
        inside, outside, kernel, stride, "same" if stride == 1 else 1, dilation, groups, bias=False
    )
    model = nn.Sequential(conv)
    inputs = torch.randn(12, inside, *(11,) * (1 if flat else 2))
    spec = layers_of(model, inputs)[0]
    hessian = collect_hessians(model, [spec], over(inputs))["0"]
    texts = ["unstr-0.60", "2:4", "1:2", "block2-0.50", "block4-0.50", "2:4+w3", "mag:1:2", "w2"]
    made = list(compress_layer(conv.weight, spec, hessian, [parse_level(text) for text in texts]))
    assert {str(m.level) for m in made} >= {"unstr-0.60", "w2"}
    assert ("2:4" in {str(m.level) for m in made}) == (spec.columns % 4 == 0)
    with torch.no_grad():
        dense = model(inputs)
        for one in made:
            assert one.weight.shape == conv.weight.shape
            last = one.weight.movedim(1, -1).reshape(outside, -1)
            sparsity = one.level.sparsity
            if sparsity is not None and sparsity.kind == "nm":
                assert int((last.reshape(-1, sparsity.m) != 0).sum(1).max()) <= sparsity.n
            elif sparsity is not None:
                gone = (last.reshape(-1, sparsity.block or 1) == 0).all(1)
                assert int(gone.sum()) >= sparsity.fraction * len(gone)
            # The recorded error is the mean over samples of the squared change of the output.
            changed = torch.func.functional_call(model, {"0.weight": one.weight}, inputs)
            expected = float(((changed - dense).double() ** 2).sum()) / len(inputs)
            assert one.error == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_levels_that_do_not_fit_a_layer_are_absent() -> None:
    weight, hessian = problem(10, d=6)
    texts = ["dense", "2:4", "block4-0.50", "1:3", "block2-0.50", "w4"]
    made = compress_layer(
        weight, linear(6, 6), hessian[None], [parse_level(text) for text in texts]
    )
    assert [str(m.level) for m in made] == ["dense", "1:3", "block2-0.50", "w4"]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2))
def test_levels_have_their_pattern_and_the_least_error_on_it(
    seed: int, rows: int, d: int, dead: int
) -> None:
    weight, hessian = problem(seed, rows, d)
    hessian[:, :dead] = hessian[:dead, :] = 0
    levels = [parse_level(f"unstr-{s}") for s in (0.2, 0.5, 0.9)]
    for made in compress_layer(weight, linear(rows, d), hessian[None], levels):
        zeros = made.weight == 0
        wanted = -(-round(rows * d * made.level.fraction_removed, 6) // 1)
        assert int(zeros.sum()) >= wanted if dead else int(zeros.sum()) == wanted
        assert made.error == pytest.approx(
            layer_error(made.weight.double() - weight, hessian[None]), rel=1e-5, abs=1e-9
        )
        # What is left is the least-squares optimum on its pattern: the gradient vanishes where
        # weights remain.
        gradient = (made.weight.double() - weight) @ hessian
        assert float((gradient * ~zeros).abs().max()) <= 1e-3 * float(hessian.abs().max())


def test_removals_are_picked_across_rows_by_loss() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], dtype=torch.float64)
    (made,) = compress_layer(
        weight, linear(2, 3), torch.eye(3, dtype=torch.float64)[None], [parse_level("unstr-0.5")]
    )
    assert made.weight.tolist() == [[0, 0, 0], [10, 20, 30]]


def test_magnitude_is_the_data_free_baseline() -> None:
    weight, hessian = problem(4)
    levels = [parse_level("mag:unstr-0.5"), parse_level("unstr-0.5"), parse_level("dense")]
    magnitude, exact, dense = compress_layer(weight, linear(6, 12), hessian[None], levels)
    assert torch.equal(
        magnitude.weight != 0, weight.abs() > weight.abs().flatten().sort().values[35]
    )
    assert torch.equal(
        magnitude.weight[magnitude.weight != 0], weight.float()[magnitude.weight != 0]
    )
    assert dense.error == dense.normalized_error == 0 < exact.error < magnitude.error
    assert exact.normalized_error == pytest.approx(exact.error / layer_error(weight, hessian[None]))


def test_groups_are_compressed_by_their_own_hessians() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 2, groups=2)
    model = nn.Sequential(layer)
    x = torch.randn(60, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    (spec,) = layers_of(model, x)
    hessian = collect_hessians(model, [spec], over(x))["0"]
    (made,) = compress_layer(layer.weight, spec, hessian, [parse_level("unstr-0.5")])
    difference = to_matrix(made.weight.double() - layer.weight.detach().double(), spec)
    assert made.error == pytest.approx(layer_error(difference, hessian), rel=1e-9)
    assert made.error <= min(
        e.error for e in compress_layer(layer.weight, spec, hessian, [parse_level("mag:unstr-0.5")])
    )


@pytest.mark.parametrize(
    "weight", [torch.zeros(3, 5), torch.tensor([[0.0] * 5, [1.0, 0, 2, 0, 3]])]
)
def test_rows_of_zeros(weight: Tensor) -> None:
    _, hessian = problem(5, d=5)
    for made in compress_layer(
        weight, linear(len(weight), 5), hessian[None], expand_levels(["dense", "unstr-0.3..0.9"])
    ):
        assert torch.isfinite(made.weight).all()
        assert 0 <= made.normalized_error <= 1 + 1e-9


def test_a_layer_that_no_input_reaches() -> None:
    (made,) = compress_layer(
        torch.ones(2, 4), linear(2, 4), torch.zeros(1, 4, 4), [parse_level("unstr-0.5")]
    )
    assert int((made.weight == 0).sum()) == 8  # all are dead: they go whatever the level
    assert made.error == made.normalized_error == 0


def test_a_layer_with_one_input() -> None:
    (made,) = compress_layer(
        torch.tensor([[3.0], [1.0], [2.0]]),
        linear(3, 1),
        torch.ones(1, 1, 1),
        [parse_level("unstr-0.6")],
    )
    assert made.weight.tolist() == [[3.0], [0.0], [0.0]]


def test_values_that_are_not_finite_and_levels_that_are_not_made() -> None:
    weight, hessian = problem(6)
    spec, half = linear(6, 12), [parse_level("unstr-0.5")]
    bad = weight.clone()
    bad[0, 0] = float("nan")
    with pytest.raises(LayerError, match="layer 'layer': its weights hold NaN"):
        next(compress_layer(bad, spec, hessian[None], half))
    with pytest.raises(LayerError, match="layer 'layer': its Hessian holds NaN"):
        next(compress_layer(weight, spec, hessian[None] * float("nan"), half))
    with pytest.raises(LevelError, match="w4a8"):
        next(compress_layer(weight, spec, hessian[None], [parse_level("w4a8")]))


def test_greedy_is_near_the_best_pattern() -> None:
    """Against every pattern of three zeros in a row of six."""
    ratios = []
    for seed in range(10):
        weight, hessian = problem(seed, rows=1, d=6)
        (made,) = compress_layer(weight, linear(1, 6), hessian[None], [parse_level("unstr-0.5")])
        best = min(
            _least(weight[0], hessian, list(gone)) for gone in itertools.combinations(range(6), 3)
        )
        ratios.append(made.error / best)
    assert min(ratios) >= 1 - 1e-5
    assert sorted(ratios)[5] < 1.5


def _least(w: Tensor, hessian: Tensor, gone: list[int]) -> float:
    hinv = torch.linalg.inv(hessian)[gone][:, gone]
    return 0.5 * float(w[gone] @ torch.linalg.solve(hinv, w[gone]))


@pytest.mark.parametrize("samples", [60, 1000])
@pytest.mark.parametrize(
    ("level", "baseline"),
    [("w8", "rtn:w8"), ("w4", "rtn:w4"), ("unstr-0.50", "mag:unstr-0.50"), ("2:4", "mag:2:4")],
)
def test_wide_layers_with_few_samples_are_better_than_the_baseline(
    level: str, baseline: str, samples: int
) -> None:
    """Single precision broke down: rounding was thousands of times better than ExactOBS."""
    columns, rows = 1200, 6
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, columns, generator=generator).relu().double()
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    spec = LayerSpec("wide", "linear", (rows, columns), 1, rows, columns)
    made, other = compress_layer(
        weight, spec, (2 / samples * x.T @ x)[None], [parse_level(level), parse_level(baseline)]
    )
    assert made.error < 0.8 * other.error
