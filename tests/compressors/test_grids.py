from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.compressors.grids import GridOptions, fit_grid

OPTIONS = st.builds(
    GridOptions,
    st.sampled_from(["channel", "tensor"]),
    st.booleans(),
    st.sampled_from(["mse", "minmax"]),
    st.sampled_from(["free", "power-of-two"]),
)


def draw(seed: int, rows: int = 5, columns: int = 40) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) ** 3


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 8), OPTIONS)
def test_every_grid_holds_zero_and_has_its_shape(
    seed: int, bits: int, options: GridOptions
) -> None:
    weight = draw(seed)
    grid = fit_grid(weight, bits, options)
    assert grid.scale.shape == grid.zero.shape == ((1, 1) if options.per == "tensor" else (5, 1))
    assert not grid.nearest(torch.zeros(5, 3)).any()
    codes = grid.codes(weight)
    assert codes.min() >= 0
    assert codes.max() < 2**bits
    assert torch.equal(grid.codes(grid.values(codes)), codes)
    if options.symmetric:
        assert (grid.zero == 2 ** (bits - 1)).all()
    if options.scale == "power-of-two":
        assert (grid.scale.frexp().mantissa == 0.5).all()


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(2, 8), OPTIONS)
def test_the_full_range_is_exact_at_its_ends(seed: int, bits: int, options: GridOptions) -> None:
    weight = draw(seed)
    grid = fit_grid(
        weight, bits, GridOptions(options.per, options.symmetric, "minmax", options.scale)
    )
    assert (
        (grid.nearest(weight) - weight).abs()
        <= grid.scale * (1 if options.symmetric else 0.51) + 1e-6
    ).all()


@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_searched_range_is_never_worse_than_the_full_one(
    per: Literal["channel", "tensor"], symmetric: bool
) -> None:
    weight = draw(1, 8, 200)

    def error(fit: Literal["mse", "minmax"]) -> torch.Tensor:
        every = (
            fit_grid(weight, 3, GridOptions(per, symmetric, fit)).nearest(weight) - weight
        ).abs() ** 2.4
        return every.sum() if per == "tensor" else every.sum(1)

    assert (error("mse") <= error("minmax")).all()
    assert error("mse").sum() < error("minmax").sum()


def test_counts_are_repetitions() -> None:
    values = torch.tensor([[-1.0, 0.3, 2.0]])
    repeated = torch.tensor([[-1.0, 0.3, 0.3, 0.3, 2.0, 2.0]])
    counted = fit_grid(values, 2, None, torch.tensor([[1.0, 3.0, 2.0]]))
    plain = fit_grid(repeated, 2)
    assert torch.equal(counted.scale, plain.scale)
    assert torch.equal(counted.zero, plain.zero)


def test_all_zeros_stay_zeros() -> None:
    for options in (GridOptions(), GridOptions("tensor", True, "minmax")):
        assert not fit_grid(torch.zeros(2, 4), 4, options).nearest(torch.zeros(2, 4)).any()
