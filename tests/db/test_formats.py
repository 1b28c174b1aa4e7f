"""Weight formats are stored to the bit, in as many bits as they say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.compressors.grids import Grid, GridOptions, fit_weights
from apportion.compressors.levels import parse_level
from apportion.db.layers import codec

GGML = ["q8_0", "q5_0", "q5_1", "q4_0", "q4_1"]
FORMATS = ["w4g32", "w3g16", "w2g32", "w8g64", "fp8", "mxfp4", "mxfp6", "mxfp8", "nvfp4", *GGML]
OPTIONS = st.builds(
    GridOptions,
    st.sampled_from(["channel", "tensor"]),
    st.booleans(),
    st.sampled_from(["mse", "minmax"]),
    st.sampled_from(["free", "power-of-two"]),
)


def fitted(weight: torch.Tensor, name: str, options: GridOptions) -> Grid:
    quantization = parse_level(name).quantization
    assert quantization is not None
    return fit_weights(weight, quantization, options)


@settings(deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.floats(-20, 20),
    OPTIONS,
    st.integers(0, 2**31),
)
def test_round_trip_is_exact(
    name: str,
    rows: int,
    blocks: int,
    density: float,
    power: float,
    options: GridOptions,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 64 * blocks)
    weight = torch.randn(shape, generator=generator) ** 3 * 2**power
    grid = fitted(weight, name, options)
    there = torch.rand(shape, generator=generator) < density
    weight = grid.values(grid.codes(weight)) * there
    assert torch.equal(grid.nearest(weight)[there], weight[there])
    assert grid.base is not None or torch.equal(grid.nearest(weight), weight)
    encoding, parts = codec.encode(weight, grid)
    assert torch.equal(codec.decode(encoding, parts, shape), weight)
    if density == 1:
        read = codec.read_grid(encoding, parts, rows)
        assert read is not None
        assert read.format == name
        for ours, theirs in ((read.scale, grid.scale), (read.zero, grid.zero)):
            assert torch.equal(ours, theirs)
        assert (read.base is None) == (grid.base is None)
        if read.base is not None and grid.base is not None:
            assert torch.equal(read.base, grid.base)
        assert torch.equal(read.values(read.codes(weight)), weight)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("w4g32", 4 + (16 + 4) / 32),
        ("w3g64", 3 + (16 + 3) / 64),
        ("mxfp4", 4 + 8 / 32),
        ("mxfp6", 6 + 8 / 32),
        ("mxfp8", 8 + 8 / 32),
        ("nvfp4", 4 + 8 / 16 + 32 / (8 * 256)),
        ("fp8", 8 + 32 / 256),
        ("q8_0", 8.5),
        ("q5_0", 5.5),
        ("q5_1", 6),
        ("q4_0", 4.5),
        ("q4_1", 5),
        ("tq2_0", 2 + 16 / 256),
    ],
)
def test_scales_are_counted(name: str, bits: float) -> None:
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(1))
    grid = fitted(weight, name, GridOptions())
    encoding, parts = codec.encode(grid.values(grid.codes(weight)), grid)
    assert encoding == name
    assert codec.stored_bits(parts) == bits * weight.numel()
    symmetric = fitted(weight, "w4g32", GridOptions(symmetric=True))
    _, parts = codec.encode(symmetric.values(symmetric.codes(weight)), symmetric)
    assert codec.stored_bits(parts) == (4 + 16 / 32) * weight.numel()


@pytest.mark.parametrize("name", ["w4g16", "mxfp4", "nvfp4", "q4_1"])
@pytest.mark.parametrize("zeros", [False, True])
def test_blocks_of_a_convolution_run_channel_last(name: str, zeros: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(3, 9 * 32, generator=generator)
    grid = fitted(matrix, name, GridOptions())
    matrix = grid.values(grid.codes(matrix))
    if zeros:
        matrix[torch.rand(matrix.shape, generator=generator) < 0.8] = 0
    weight = matrix.reshape(3, 3, 3, 32).movedim(-1, 1).contiguous()
    encoding, parts = codec.encode(weight, grid)
    assert encoding == f"bitmask+{name}" if zeros else name
    assert torch.equal(codec.decode(encoding, parts, (3, 32, 3, 3)), weight)


def test_what_a_format_does_not_have_is_refused() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(3))
    for name in ("mxfp4", "nvfp4", "w4g32"):
        grid = fitted(weight, name, GridOptions())
        with pytest.raises(ValueError, match="not on their grid"):
            codec.encode(weight, grid)
