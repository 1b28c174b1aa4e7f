"""Float formats: their values, rounding and scales, against torch's own float8 types and the
specification's tables."""

import pytest
import torch

from apportion.compressors.grids import GridOptions, fit_weights
from apportion.compressors.grids.codebook import minifloat
from apportion.compressors.levels import parse_level


@pytest.mark.parametrize(
    ("exponent", "mantissa", "expected"),
    [
        (2, 1, [0, 0.5, 1, 1.5, 2, 3, 4, 6]),
        (2, 3, [*(i / 8 for i in range(16)), *(2 + i / 4 for i in range(8)),
                *(4 + i / 2 for i in range(8))]),
    ],
)  # fmt: skip
def test_small_floats_are_the_specifications(
    exponent: int, mantissa: int, expected: list[float]
) -> None:
    book = minifloat(exponent, mantissa)
    assert book.values[book.values >= 0].tolist() == expected
    assert torch.equal(book.values, -book.values.flip(0))
    assert torch.equal(book.values_of(book.code), book.values)


def test_e4m3_rounds_as_torch_does() -> None:
    book = minifloat(4, 3)
    assert book.largest == 448
    every = torch.arange(-450, 450, 0.00371)
    ties = (book.values[1:] + book.values[:-1]) / 2
    x = torch.cat([every, ties, every * 2.0**-12, book.values]).clamp(-448, 448)
    expected = x.to(torch.float8_e4m3fn)
    assert torch.equal(book.nearest(x), expected.float() + 0.0)
    codes = book.codes(x)
    same = codes == expected.view(torch.uint8)
    assert (same | (expected.float() == 0)).all()  # its negative zero is not used
    assert torch.equal(book.nearest(x.double()), expected.double() + 0.0)


def test_ties_go_to_the_even_code() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    expected = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    book = minifloat(2, 1)
    assert torch.equal(book.nearest(ties), expected)
    assert torch.equal(book.nearest(-ties), -expected)


def test_the_shared_scale_is_the_specifications() -> None:
    """OCP Microscaling Formats v1.0, section 6.3: 2^(floor(log2 max) - exponent of the largest
    number)."""
    weight = torch.zeros(3, 32)
    weight[0, 3], weight[1, 5], weight[2, 0] = 7.9, -0.11, 2.0**-130
    for name, largest in (("mxfp4", 2), ("mxfp6", 2), ("mxfp8", 8)):
        quantization = parse_level(name).quantization
        assert quantization is not None
        grid = fit_weights(weight, quantization, GridOptions(fit="minmax"))
        assert grid.scale.flatten().tolist()[:2] == [2.0 ** (2 - largest), 2.0 ** (-4 - largest)]
        assert (grid.scale > 0).all()
        assert grid.nearest(weight)[0, 3] == {"mxfp4": 6, "mxfp6": 7.5, "mxfp8": 7}[name]


@pytest.mark.parametrize(
    "name", ["fp8", "mxfp4", "mxfp6", "mxfp8", "nvfp4", "w4g32", "q8_0", "q5_1", "q4_0", "q4_1"]
)
def test_the_searched_scales_are_never_worse(name: str) -> None:
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(0)) ** 3
    quantization = parse_level(name).quantization
    assert quantization is not None
    errors = []
    for fit in ("mse", "minmax"):
        grid = fit_weights(weight, quantization, GridOptions(fit=fit))
        errors.append(((grid.nearest(weight) - weight).abs() ** 2.4).sum(1))
    assert (errors[0] <= errors[1]).all()


def test_nvfp4_uses_the_whole_range_of_its_block_scales() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    quantization = parse_level("nvfp4").quantization
    assert quantization is not None
    grid = fit_weights(weight, quantization, GridOptions(fit="minmax"))
    assert grid.unit is not None
    ratio = grid.scale / grid.unit
    assert float(ratio.max()) == pytest.approx(448)
    assert torch.allclose(minifloat(4, 3).nearest(ratio), ratio)
