from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apportion.compressors.grids import GridOptions, fit_grid
from apportion.db.layers import codec


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 2**31))
def test_round_trip_is_exact(shape: list[int], density: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) * (
        torch.rand(shape, generator=generator) < density
    )
    encoding, parts = codec.encode(weight)
    assert torch.equal(codec.decode(encoding, parts, tuple(shape)), weight)


def test_sparse_weights_are_stored_sparse() -> None:
    weight = torch.zeros(64, 64)
    weight[:, :4] = 1.5
    encoding, parts = codec.encode(weight)
    assert encoding == "bitmask"
    assert codec.stored_bits(parts) == 64 * 64 + 4 * 64 * 32
    encoding, parts = codec.encode(weight.T)
    assert encoding == "rowmask"
    assert codec.stored_bits(parts) == 64 + 4 * 64 * 32
    assert torch.equal(codec.decode(encoding, parts, (64, 64)), weight.T)


def test_dense_weights_are_stored_dense() -> None:
    encoding, parts = codec.encode(torch.ones(8, 8))
    assert encoding == "dense"
    assert codec.stored_bits(parts) == 64 * 32


def test_the_mask_is_as_the_format_says() -> None:
    weight = torch.tensor([[0.0, 3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 7.0]])
    encoding, parts = codec.encode(torch.cat([weight, torch.zeros(6, 5)]))
    assert encoding == "bitmask"  # 13 bytes; a row mask would take 41
    assert parts["mask"][:2].tolist() == [0b01000000, 0b01000000]
    assert parts["values"].tolist() == [3.0, 7.0]


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values for a mask of 1"):
        codec.decode(
            "bitmask",
            {"mask": torch.tensor([128], dtype=torch.uint8), "values": torch.ones(2)},
            (2, 2),
        )
    with pytest.raises(ValueError, match="unknown encoding"):
        codec.decode("zip", {"values": torch.ones(2)}, (2,))


def test_a_checksum_sees_every_change() -> None:
    parts = {"values": torch.arange(4.0), "mask": torch.tensor([1, 2], dtype=torch.uint8)}
    same = codec.checksum(dict(reversed(parts.items())))
    assert same == codec.checksum(parts)
    assert codec.checksum({**parts, "values": torch.arange(4.0).reshape(2, 2)}) != same
    assert codec.checksum({**parts, "values": torch.tensor([0.0, 1.0, 2.0, 3.5])}) != same


@given(
    st.integers(1, 8), st.integers(1, 6), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**31)
)
def test_quantized_weights_round_trip_and_are_small(
    bits: int, rows: int, columns: int, density: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    grid = fit_grid(weight, bits)
    weight = grid.values(grid.codes(weight)) * (
        torch.rand(rows, columns, generator=generator) < density
    )
    encoding, parts = codec.encode(weight, grid)
    assert torch.equal(codec.decode(encoding, parts, (rows, columns)), weight)
    assert codec.stored_bits(parts) <= bits * weight.numel() + 7 + 40 * rows


def test_a_weight_that_is_not_on_its_grid_is_refused() -> None:
    weight = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="not on their grid"):
        codec.encode(weight, fit_grid(weight, 3))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("fit", ["mse", "minmax"])
def test_one_grid_for_all_rows_takes_one_scale(
    symmetric: bool, fit: Literal["mse", "minmax"]
) -> None:
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(3))
    grid = fit_grid(weight, 4, GridOptions("tensor", symmetric, fit))
    stored = grid.values(grid.codes(weight))
    encoding, parts = codec.encode(stored, grid)
    assert (encoding, parts["scale"].numel()) == ("packed4", 1)
    assert codec.stored_bits(parts) == 6 * 32 * 4 + 32 + 8
    assert torch.equal(codec.decode(encoding, parts, (6, 32)), stored)
    if symmetric:
        assert int(parts["zero"]) == 8
