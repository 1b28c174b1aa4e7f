"""What looks like channels and is not, and what stands in the way: refused, or made right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import Conv2d, Linear
from torch.nn import functional as F

from apportion.compressors.calibration import over
from apportion.compressors.groups.readers import first_of, readers_of
from apportion.evaluators.rewriting.compensate import without
from apportion.evaluators.rewriting.masked import working
from apportion.evaluators.rewriting.narrow import narrowed
from tests.compressors.groups.masking import grouped, outputs, some_of
from tests.compressors.groups.test_modules import Of, R

MASK = torch.tensor([True, False, False, False])


@dataclass
class Out:
    """No tree that torch knows."""

    y: Tensor
    h: Tensor


def scaled(h: Tensor) -> Tensor:
    """By a number that depends on the width."""
    return h / h.shape[-1] ** 0.5


def two(forward: Callable[..., Any]) -> nn.Module:
    return Of(forward, a=Linear(6, 8), b=Linear(8, 4), c=Linear(6, 8))


def given_back(m: Any, x: Tensor) -> Out:
    h = m["a"](x).relu()
    return Out(m["b"](h), h)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m["b"](scaled(m["a"](x).relu())).masked_fill(MASK, float("-inf")),
        lambda m, x: m["b"](scaled(m["a"](x).relu())).masked_fill(MASK, float("nan")),
        lambda m, x: Out(m["b"](scaled(m["a"](x).relu())), x),
        given_back,
        lambda m, x: m["b"](m["a"](x) + torch.roll(m["c"](x), 1, 1)),
        lambda m, x: x[:, :4] + 1e-3 * m["b"](scaled(m["a"](x).relu())),
        lambda m, x: (m["b"](m["a"](x)), m["a"](x).new_zeros(0, 4), *m["a"](x).unbind(1)),
    ],
    ids=["infinite", "nan", "dataclass", "given back", "rolled", "weak branch", "many outputs"],
)
def test_a_smaller_model_that_computes_something_else_is_refused(
    forward: Callable[..., Any],
) -> None:
    torch.manual_seed(0)
    model, x = two(forward).eval(), R(5, 6)
    found, made = grouped(model, x)
    assert not working(model, made, found.layers, over(x), x).groups


def test_means_over_channels_are_seen_behind_many_others() -> None:
    """Large numbers of channels lie close together."""
    torch.manual_seed(0)
    model = nn.Sequential(Conv2d(3, 6000, 1), nn.ReLU(), Conv2d(6000, 32, 1))
    tail = Conv2d(32, 3, 1)

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m["a"](x).relu()
        out: Tensor = m["o"](h) + 0.01 * h.mean(1, keepdim=True)
        return out

    whole = Of(forward, a=model, o=tail).eval()
    _, made = grouped(whole, R(1, 3, 4, 4))
    assert [group.size for group in made.groups] == [6000]
    assert made.kept["parts.a.2"] == "mean takes several channels"


class Own(nn.Module):
    """A bias that is added to the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(R(6, 6)), nn.Parameter(R(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x + self.bias, self.weight)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: nn.Sequential(Linear(4, 6), nn.ReLU(), Own(), Linear(6, 2)), (40, 4)),
        (
            lambda: nn.Sequential(
                Linear(4, 6),
                Linear(6, 8, bias=False),
                nn.ReLU(inplace=True),
                nn.BatchNorm1d(8),
                Linear(8, 2),
            ),
            (40, 4),
        ),
        (
            lambda: Of(
                lambda m, x: m["b"](
                    torch.cat([m["n"](h) for h in m["a"](m["z"](x).relu()).chunk(2, 1)], 1).relu()
                ),
                z=Conv2d(3, 8, 1),
                a=Conv2d(8, 8, 3, bias=False),
                n=nn.BatchNorm2d(4),
                b=Conv2d(8, 4, 1),
            ),
            (8, 3, 5, 5),
        ),
    ],
    ids=["a bias before", "a norm behind another function", "norms of parts"],
)
def test_what_is_made_up_for_never_makes_it_worse(
    model: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    own, x = model().eval(), R(shape)
    found, made = grouped(own, x)
    readers = readers_of(own, made, found.layers, over(x), 1e-3)
    first = made.groups[0]
    kept = first_of({first.name: np.arange(first.size)}, {first.name: first.size - 2})
    dense = outputs(own, x)
    plain, better = (without(own, made, use, kept) for use in ({}, readers))
    assert F.mse_loss(outputs(better, x), dense) <= F.mse_loss(outputs(plain, x), dense)


class Extra(Linear):
    def get_extra_state(self) -> Any:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"version": 1}


class Hidden(nn.Module):
    """A buffer outside the state, parameters in a list, and a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Linear(4, 8), Extra(8, 3)
        self.scales = nn.ParameterList([nn.Parameter(R(8))])
        self.register_buffer("places", R(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(x).relu() * self.scales[0] + self.places)
        return out


def test_all_that_a_module_holds_becomes_smaller() -> None:
    torch.manual_seed(0)
    model, x = Hidden().eval(), R(3, 4)
    found, made = grouped(model, x)
    made = working(model, made, found.layers, over(x), x)
    assert [group.size for group in made.groups] == [8]
    small = narrowed(model, made.groups, some_of(made.groups, np.random.default_rng(0)))
    assert small.get_buffer("places").shape == (4,)
    assert outputs(small, x).shape == (3, 3)


def test_choices_by_activations_stay() -> None:
    model = two(lambda m, x: m["b"](m["a"](x)[m["a"](x)[:, 0] > -99])).eval()
    _, made = grouped(model, R(5, 6))
    assert not made.groups
