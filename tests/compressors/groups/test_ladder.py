"""Ladders of channels: best first, and what is recorded is what is measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apportion.compressors.calibration import over
from apportion.compressors.groups.find import ChannelGroup
from apportion.compressors.groups.ladder import Reader, channel_ladder, compensated, reader
from apportion.compressors.groups.moments import Moments
from apportion.compressors.groups.readers import first_of, readers_of
from apportion.compressors.layers import LayerSpec
from apportion.evaluators.rewriting.compensate import without
from tests.compressors.groups import textbook
from tests.compressors.groups.masking import grouped
from tests.compressors.problems import linear, problem


def group_of(columns: list[int], names: tuple[str, ...] = ("layer",)) -> ChannelGroup:
    own = np.array([columns])
    return ChannelGroup("group", max(columns) + 1, {}, dict.fromkeys(names, own), ())


def reader_of(seed: int, rows: int = 5, d: int = 12) -> tuple[Reader, Tensor]:
    weight, hessian = problem(seed, rows, d)
    moments = Moments(hessian[None], torch.zeros(1, d).double())
    return reader(linear(rows, d), weight, moments, 0.0), hessian


def share(own: Reader, hessian: Tensor, gone: np.ndarray) -> float:
    """The layer's error without these columns, measured, over its whole error."""
    weight, _ = compensated(own, gone[None])
    change = weight - own.weight[0]
    return 0.5 * float(((change @ hessian) * change).sum()) / own.whole


@pytest.mark.parametrize("columns", [list(range(12)), [c // 3 for c in range(12)], [0, 1, 2] * 4])
def test_recorded_losses_are_measured_ones(columns: list[int]) -> None:
    own, hessian = reader_of(1)
    ladder = channel_ladder(group_of(columns), {"layer": own})
    for n in range(len(ladder.order) + 1):
        gone = np.isin(columns, ladder.order[:n])
        assert ladder.losses[n] == pytest.approx(share(own, hessian, gone), rel=1e-6, abs=1e-9)
    assert ladder.losses[-1] == pytest.approx(1)


def test_the_first_to_go_costs_least_of_all() -> None:
    own, hessian = reader_of(2)
    columns = [c // 2 for c in range(12)]
    costs = [share(own, hessian, np.array(columns) == c) for c in range(6)]
    ladder = channel_ladder(group_of(columns), {"layer": own})
    assert ladder.order[0] == int(np.argmin(costs))
    assert ladder.losses[1] == pytest.approx(min(costs), rel=1e-6)


@pytest.mark.parametrize("k", [1, 2, 9, 50])
def test_ladders_are_those_of_the_equations_by_the_letter(k: int) -> None:
    """Over two readers, of which one has two groups and columns that no input reaches, and folded
    in several times."""
    channels = 300 // k
    d = channels * k
    weight, hessian = problem(1, 20, d)
    hessian[3 * k : 4 * k] = hessian[:, 3 * k : 4 * k] = 0
    hessian[d - 1] = hessian[:, d - 1] = 0
    second, other = problem(2, 20, d + 8)
    readers = {
        "one": reader(
            LayerSpec("one", "linear", (20, d), 1, 20, d),
            weight,
            Moments(hessian[None], torch.zeros(1, d).double()),
            1e-3,
        ),
        "other": reader(
            LayerSpec("other", "linear", (20, d + 8), 2, 20, d + 8),
            second,
            Moments(torch.stack([other, other + torch.eye(d + 8)]), torch.zeros(2, d + 8).double()),
            1e-3,
        ),
    }
    own = np.repeat(np.arange(channels), k)
    columns = {
        "one": np.tile(np.arange(channels), k)[None],
        "other": np.stack([np.r_[own, [-1] * 8], np.r_[[-1] * 8, own]]),
    }
    group = ChannelGroup("group", channels, {}, columns, ())
    ladder, expected = channel_ladder(group, readers), textbook.channel_ladder(group, readers)
    assert ladder.order.tolist() == expected.order.tolist()
    np.testing.assert_allclose(ladder.losses, expected.losses, rtol=1e-6, atol=1e-9)


def test_weights_without_columns_are_the_least_squares_ones() -> None:
    own, hessian = reader_of(3)
    gone = np.arange(12) % 3 == 0
    weight, _ = compensated(own, gone[None])
    left = torch.from_numpy(~gone)
    expected = own.weight[0] @ hessian[:, left] @ torch.linalg.inv(hessian[left][:, left])
    torch.testing.assert_close(weight[:, left], expected)
    assert not bool(weight[:, torch.from_numpy(gone)].any())


def test_an_identity_hessian_removes_by_magnitude() -> None:
    weight, _ = problem(4)
    moments = Moments(torch.eye(12).double()[None], torch.zeros(1, 12).double())
    own = reader(linear(6, 12), weight, moments, 0.0)
    ladder = channel_ladder(group_of(list(range(12))), {"layer": own})
    assert ladder.order.tolist() == (weight**2).sum(0).argsort().tolist()


def test_two_readers_are_weighed_by_their_whole_errors() -> None:
    one, _ = reader_of(5)
    other, _ = reader_of(6)
    group = group_of(list(range(12)), ("one", "other"))
    ladder = channel_ladder(group, {"one": one, "other": other})
    large = Reader(other.layer, 1e3 * other.weight, other.hinv, other.mean, 1e6 * other.whole)
    scaled = channel_ladder(group, {"one": one, "other": large})
    assert ladder.order.tolist() == scaled.order.tolist()
    np.testing.assert_allclose(ladder.losses, scaled.losses)
    assert ladder.losses[-1] == pytest.approx(2)


def test_a_channel_that_no_input_reaches_goes_first_and_costs_nothing() -> None:
    weight, hessian = problem(7)
    hessian[4:6] = hessian[:, 4:6] = 0
    moments = Moments(hessian[None], torch.zeros(1, 12).double())
    own = reader(linear(6, 12), weight, moments, 0.0)
    ladder = channel_ladder(group_of([c // 2 for c in range(12)]), {"layer": own})
    assert ladder.order[0] == 2
    assert ladder.losses[1] == 0
    assert np.isfinite(ladder.losses).all()
    assert ladder.losses[-1] == pytest.approx(1)


class Constant(nn.Module):
    """Its second channel is constant."""

    def __init__(self, convolution: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one: nn.Module = nn.Conv2d(3, 6, 1) if convolution else nn.Linear(3, 6)
        self.two: nn.Module = nn.Conv2d(6, 4, 1) if convolution else nn.Linear(6, 4)
        with torch.no_grad():
            assert isinstance(self.one.weight, Tensor)
            assert isinstance(self.one.bias, Tensor)
            self.one.weight[1] = 0
            self.one.bias[1] = 3.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(x).relu())
        return out


@pytest.mark.parametrize("convolution", [False, True])
def test_a_constant_channel_costs_nothing_as_the_bias_stands_for_it(convolution: bool) -> None:
    model = Constant(convolution).eval()
    x = torch.randn(4, 3, 5, 5) if convolution else torch.randn(40, 3)
    found, made = grouped(model, x)
    own = readers_of(model, made, found.layers, over(x), 1e-6)["two"]
    (group,) = made.groups
    ladder = channel_ladder(group, {"two": own})
    assert ladder.order[0] == 1
    assert ladder.losses[1] < 1e-9
    small = without(model, made, {"two": own}, first_of({group.name: ladder.order}, {"one": 5}))
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-4)
