"""The Triton kernel's arithmetic in Triton's interpreter, on the CPU. `test_fused.py` runs this
file in a process of its own: the interpreter takes over triton for good."""

import pytest
import torch
from torch import Tensor

from apportion.compressors.elimination import fused, textbook
from apportion.compressors.grids import GridOptions, fit_grid, fit_weights
from apportion.compressors.levels import parse_level


def problem(seed: int, rows: int, d: int) -> tuple[Tensor, Tensor]:
    """Weights [rows, d] and an inverse Hessian [d, d], float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * d, d, generator=generator, dtype=torch.float64)
    return torch.randn(rows, d, generator=generator, dtype=torch.float64), torch.linalg.inv(
        x.T @ x / d
    )


@pytest.mark.parametrize("d", [1, 5, 48])
def test_its_order_is_the_textbooks(d: int) -> None:
    weight, hinv = problem(d, 3, d)
    ours, expected = fused.eliminate(weight, hinv), textbook.eliminate(weight, hinv)
    assert torch.equal(ours[0], expected[0])
    torch.testing.assert_close(ours[1], expected[1], rtol=1e-6, atol=1e-7)


def test_weights_that_are_stored_by_columns() -> None:
    weight, hinv = problem(2, 3, 20)
    across = weight.T.contiguous().T
    assert torch.equal(fused.eliminate(across, hinv)[0], fused.eliminate(weight, hinv)[0])


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (0, 2)])
def test_its_patterns_are_the_textbooks(n: int, m: int) -> None:
    weight, hinv = problem(n, 3, 36)
    ours, expected = (
        fused.prune_n_of_m(weight, hinv, n, m),
        textbook.prune_n_of_m(weight, hinv, n, m),
    )
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bits", [2, 4])
def test_it_quantizes_as_the_textbook_does(bits: int) -> None:
    weight, hinv = problem(bits, 4, 30)
    fixed = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    fixed[1], fixed[2] = False, True
    weight = weight.masked_fill(fixed, 0)
    grid = fit_grid(weight, bits)
    assert torch.equal(
        fused.quantize(weight, hinv, grid, fixed), textbook.quantize(weight, hinv, grid, fixed)
    )


@pytest.mark.parametrize("level", ["w2g10", "w4g6", "fp8"])
def test_it_quantizes_in_groups_as_the_textbook_does(level: str) -> None:
    weight, hinv = problem(7, 4, 60)
    fixed = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    weight = weight.masked_fill(fixed, 0)
    weight[:, ::3] *= 9
    quantization = parse_level(level).quantization
    assert quantization is not None
    grid = fit_weights(weight, quantization, GridOptions())
    torch.testing.assert_close(
        fused.quantize(weight, hinv, grid, fixed), textbook.quantize(weight, hinv, grid, fixed)
    )


def test_it_checks_itself_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert fused.works_on(torch.device("cpu"))
    fused.works_on.cache_clear()
    monkeypatch.setattr(fused, "prune_n_of_m", lambda weight, *_: weight)  # a miscompiled kernel
    assert not fused.works_on(torch.device("cpu"))
    assert "plain torch" in caplog.text
