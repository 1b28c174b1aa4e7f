"""Tables: nothing makes up for a weight that goes, so that the optimum is known."""

import itertools

import pytest
import torch

from apportion.compressors.layers import LayerSpec
from apportion.compressors.levels import parse_level
from apportion.compressors.obs import compress_layer, layer_error

TABLE = LayerSpec("table", "embedding", (4, 4), 1, 4, 4)


def test_what_goes_is_what_costs_least() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 4, dtype=torch.float64)
    hessian = torch.tensor([[4.0], [1.0], [0.5], [2.0]], dtype=torch.float64)
    made = compress_layer(weight, TABLE, hessian, [parse_level("unstr-0.25"), parse_level("1:4")])
    unstructured, pattern = made
    errors = [
        layer_error(
            torch.zeros(16, dtype=torch.float64)
            .index_copy(0, torch.tensor(gone), weight.flatten()[list(gone)])
            .reshape(4, 4),
            hessian,
        )
        for gone in itertools.combinations(range(16), 4)
    ]
    assert unstructured.error == pytest.approx(min(errors), rel=1e-6)
    assert ((pattern.weight != 0).sum(1) == 1).all()
    assert torch.equal(pattern.weight.abs().amax(1), weight.float().abs().amax(1))


def test_rows_that_calibration_never_took_count_as_the_rarest_one() -> None:
    weight = torch.tensor([1.0, 3.0, 2.0, 5.0])[:, None].expand(4, 4).clone()
    hessian = torch.tensor([[16.0], [0.0], [0.5], [0.0]], dtype=torch.float64)
    (made,) = compress_layer(weight, TABLE, hessian, [parse_level("unstr-0.50")])
    assert (made.weight == 0).all(1).tolist() == [False, True, True, False]
    assert made.error == pytest.approx(0.5 * 0.5 * 4 * 2.0**2)  # of the row that is taken


def test_rounding_keeps_what_is_gone_at_zero() -> None:
    torch.manual_seed(1)
    weight, hessian = torch.randn(4, 4), torch.ones(4, 1, dtype=torch.float64)
    both, rounded = compress_layer(
        weight, TABLE, hessian, [parse_level("unstr-0.50+w3"), parse_level("w3")]
    )
    assert int((both.weight == 0).sum()) >= 8
    assert both.grid is not None
    assert rounded.grid is not None
    nearest = rounded.grid.nearest(weight)
    torch.testing.assert_close(rounded.weight, nearest)
