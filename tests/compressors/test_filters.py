"""Filter levels: whole output channels."""

import itertools

import pytest
import torch
from torch import nn

from apportion.compressors.layers import LayerSpec
from apportion.compressors.levels import parse_level
from apportion.compressors.obs import compress_layer, fits, layer_error
from tests.compressors.problems import layers_of, linear, problem


@pytest.mark.parametrize("seed", range(5))
def test_the_filters_that_go_are_the_best(seed: int) -> None:
    weight, hessian = problem(seed, rows=7)
    (made,) = compress_layer(weight, linear(7, 12), hessian[None], [parse_level("filter-0.4")])
    gone = [r for r in range(7) if not made.weight[r].any()]
    assert len(gone) == 3  # rounded up
    left = [r for r in range(7) if r not in gone]
    assert torch.equal(made.weight[left], weight[left].float())

    def rise(rows: tuple[int, ...]) -> float:
        removed = torch.zeros_like(weight)
        removed[list(rows)] = weight[list(rows)]
        return layer_error(removed, hessian[None])

    assert made.error == pytest.approx(
        min(rise(rows) for rows in itertools.combinations(range(7), 3)), rel=1e-5
    )


def test_an_identity_hessian_removes_by_magnitude() -> None:
    weight, _ = problem(3, rows=9)
    ours, data_free = compress_layer(
        weight,
        linear(9, 12),
        torch.eye(12)[None],
        [parse_level("filter-0.30"), parse_level("mag:filter-0.30")],
    )
    assert torch.equal(ours.weight, data_free.weight)
    assert not ours.weight[weight.norm(dim=1).argsort()[:3]].any()


def test_filters_of_groups_have_their_own_hessians() -> None:
    spec = layers_of(nn.Conv2d(4, 4, 3, groups=4), torch.randn(1, 4, 5, 5))[0]
    weight = torch.ones(4, 1, 3, 3)
    hessian = torch.eye(9).expand(4, 9, 9) * torch.tensor([3.0, 1.0, 4.0, 2.0])[:, None, None]
    (made,) = compress_layer(weight, spec, hessian, [parse_level("filter-0.5")])
    assert made.weight.flatten(1).any(1).tolist() == [True, False, True, False]


def test_what_is_left_is_quantized_and_nothing_else() -> None:
    weight, hessian = problem(1, rows=8)
    (made,) = compress_layer(weight, linear(8, 12), hessian[None], [parse_level("filter-0.25+w4")])
    assert made.grid is not None
    assert int((~made.weight.any(1)).sum()) == 2
    assert torch.allclose(
        made.grid.values(made.grid.codes(made.weight))[made.weight.any(1)],
        made.weight[made.weight.any(1)],
    )


@pytest.mark.parametrize(
    ("groups", "rows", "share", "expected"),
    [
        (1, 8, 0.5, True),
        (8, 8, 0.5, True),
        (2, 8, 0.5, False),
        (1, 8, 0.99, False),
        (1, 1, 0.5, False),
    ],
)
def test_layers_that_filters_fit(groups: int, rows: int, share: float, expected: bool) -> None:
    spec = LayerSpec("conv", "conv2d", (rows, 4, 3, 3), groups, rows, 36)
    assert fits(spec, parse_level(f"filter-{share}")) is expected
