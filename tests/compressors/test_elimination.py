"""The fast eliminations are the textbook's."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apportion.compressors.elimination import dispatch, textbook
from apportion.compressors.elimination.dispatch import Limits
from apportion.compressors.grids import GridOptions, fit_grid, fit_weights
from apportion.compressors.levels import parse_level
from tests.compressors.problems import problem

LIMITS = Limits(1 << 24, 2)


unhurried = settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.usefixtures("each_form")
@unhurried
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 150))
def test_a_fast_elimination_is_the_textbooks(seed: int, rows: int, d: int) -> None:
    weight, hessian = problem(seed, rows, d)
    hinv = torch.linalg.inv(hessian)
    expected, ours = textbook.eliminate(weight, hinv), dispatch.eliminate(weight, hinv, LIMITS)
    assert torch.equal(ours[0], expected[0])
    torch.testing.assert_close(ours[1], expected[1], rtol=1e-6, atol=1e-12)


@pytest.mark.usefixtures("each_form")
@unhurried
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 20), st.integers(1, 5))
def test_fast_blocks_and_patterns_are_the_textbooks(
    seed: int, rows: int, groups: int, size: int
) -> None:
    weight, hessian = problem(seed, rows, groups * size)
    hinv = torch.linalg.inv(hessian)
    blocks, expected = (
        dispatch.eliminate_blocks(weight, hinv, size, LIMITS),
        textbook.eliminate_blocks(weight, hinv, size),
    )
    assert torch.equal(blocks[0], expected[0])
    torch.testing.assert_close(blocks[1], expected[1], rtol=1e-6, atol=1e-10)
    n = 1 + seed % size
    ours, theirs = (
        dispatch.prune_n_of_m(weight, hinv, n, size, LIMITS),
        textbook.prune_n_of_m(weight, hinv, n, size),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("each_form")
@unhurried
@given(
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.integers(1, 70),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.builds(
        GridOptions,
        st.sampled_from(["channel", "tensor"]),
        st.booleans(),
        st.sampled_from(["mse", "minmax"]),
    ),
)
def test_fast_quantization_is_the_textbooks(
    seed: int, rows: int, d: int, bits: int, zeros: float, options: GridOptions
) -> None:
    weight, hessian = problem(seed, rows, d)
    hinv = torch.linalg.inv(hessian)
    fixed = torch.rand(rows, d, generator=torch.Generator().manual_seed(seed)) < zeros
    weight = weight.masked_fill(fixed, 0)
    grid = fit_grid(weight, bits, options)
    near = dispatch.quantize(weight, hinv, grid, fixed, LIMITS)
    torch.testing.assert_close(
        near, textbook.quantize(weight, hinv, grid, fixed), rtol=1e-6, atol=1e-9
    )
    assert not near[fixed].any()


@pytest.mark.usefixtures("each_form")
@unhurried
@given(
    st.integers(0, 10_000),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(["w2g16", "w4g16", "w3g32", "fp8", "mxfp4", "nvfp4", "q4_0", "q5_1"]),
    st.sampled_from([0.0, 0.4]),
    st.booleans(),
)
def test_fast_quantization_in_groups_is_the_textbooks(
    seed: int, rows: int, groups: int, name: str, zeros: float, symmetric: bool
) -> None:
    weight, hessian = problem(seed, rows, 32 * groups)
    hinv = torch.linalg.inv(hessian)
    fixed = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < zeros
    weight = weight.masked_fill(fixed, 0)
    weight[:, ::5] *= 7  # groups whose scales are far apart
    quantization = parse_level(name).quantization
    assert quantization is not None
    grid = fit_weights(weight, quantization, GridOptions(symmetric=symmetric))
    near = dispatch.quantize(weight, hinv, grid, fixed, LIMITS)
    expected = textbook.quantize(weight, hinv, grid, fixed)
    torch.testing.assert_close(near, expected, rtol=1e-6, atol=1e-9)
    assert not near[fixed].any()
    torch.testing.assert_close(grid.nearest(near)[~fixed], near[~fixed])


@pytest.mark.usefixtures("each_form")
def test_groups_as_wide_as_the_row_are_no_groups() -> None:
    weight, hessian = problem(3, 5, 48)
    hinv, free = torch.linalg.inv(hessian), torch.zeros(5, 48, dtype=torch.bool)
    row = fit_grid(weight, 3)
    one, three = (
        replace(row, scale=row.scale.repeat(1, n), zero=row.zero.repeat(1, n), group=48 // n)
        for n in (1, 3)
    )
    made = [dispatch.quantize(weight, hinv, grid, free, LIMITS) for grid in (row, one, three)]
    torch.testing.assert_close(made[0], made[1])
    torch.testing.assert_close(made[0], made[2])


@pytest.mark.usefixtures("each_form")
def test_weights_that_are_stored_by_columns() -> None:
    """As those of GPT-2's Conv1D are, read as a matrix."""
    weight, hessian = problem(5, 6, 32)
    hinv, across = torch.linalg.inv(hessian), weight.T.contiguous().T
    free = torch.zeros_like(weight, dtype=torch.bool)
    grid = fit_grid(weight, 3)
    for run in (
        lambda w: dispatch.eliminate(w, hinv)[0],
        lambda w: dispatch.eliminate_blocks(w, hinv, 4)[0],
        lambda w: dispatch.prune_n_of_m(w, hinv, 2, 4),
        lambda w: dispatch.quantize(w, hinv, grid, free),
    ):
        assert torch.equal(run(across), run(weight))


def test_many_refreshes_change_nothing() -> None:
    weight, hessian = problem(5, 3, 400)
    hinv = torch.linalg.inv(hessian)
    assert torch.equal(
        dispatch.eliminate(weight, hinv, Limits(1, 1))[0], textbook.eliminate(weight, hinv)[0]
    )
    mine = dispatch.eliminate_blocks(weight, hinv, 4, Limits(1, 1))[0]
    assert torch.equal(mine, textbook.eliminate_blocks(weight, hinv, 4)[0])


@pytest.mark.usefixtures("each_form")
def test_single_precision_says_what_its_choices_cost() -> None:
    weight, hessian = problem(6, 3, 900)  # wide enough for products by oneDNN, in several strips
    hinv = torch.linalg.inv(hessian)
    order, losses = dispatch.eliminate(weight.float(), hinv.float(), LIMITS)
    for w, sequence, lost in zip(
        weight, order, losses, strict=True
    ):  # another path than the textbook's after a near-tie
        factor = torch.linalg.cholesky(hinv[sequence][:, sequence])
        y = torch.linalg.solve_triangular(factor, w[sequence, None], upper=False).squeeze(1)
        torch.testing.assert_close(
            lost.double().cumsum(0), (y**2 / 2).cumsum(0), rtol=2e-3, atol=1e-6
        )


def test_blocks_of_one_are_unstructured() -> None:
    weight, hessian = problem(7)
    hinv = torch.linalg.inv(hessian)
    assert torch.equal(
        dispatch.eliminate_blocks(weight, hinv, 1, LIMITS)[0],
        dispatch.eliminate(weight, hinv, LIMITS)[0],
    )


@pytest.mark.parametrize("eliminate", [textbook.eliminate, dispatch.eliminate])
def test_an_identity_hessian_removes_by_magnitude(eliminate: object) -> None:
    weight, _ = problem(2)
    order, losses = eliminate(weight, torch.eye(12, dtype=torch.float64))  # type: ignore[operator]
    assert torch.equal(order, weight.abs().argsort(dim=1))
    torch.testing.assert_close(losses, weight.abs().sort(dim=1).values ** 2 / 2)


@pytest.mark.parametrize("eliminate", [textbook.eliminate, dispatch.eliminate])
def test_ties_go_to_the_lowest_column(eliminate: object) -> None:
    order, _ = eliminate(torch.ones(3, 7, dtype=torch.float64), torch.eye(7, dtype=torch.float64))  # type: ignore[operator]
    assert order.tolist() == [list(range(7))] * 3
