"""What users' networks are made of: how many channels may go, and that what is left computes the
same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import Conv2d, Linear
from torch.nn import functional as F

from apportion.compressors.calibration import over
from apportion.evaluators.rewriting.masked import masked, working
from apportion.evaluators.rewriting.narrow import narrowed
from tests.compressors.groups.masking import grouped, outputs, some_of

R = torch.randn


class Of(nn.Module):
    """Parts, and what is done with them."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.parts, self._forward = nn.ModuleDict(parts), forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self.parts, x)


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Linear(4, 8), Linear(8, 3)
        self.positions, self.scale = nn.Parameter(R(1, 5, 8)), nn.Parameter(R(8))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two((self.one(x) + self.positions).relu() * self.scale)
        return out


class Bare(nn.Module):
    """A product with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.weight, self.two = Linear(4, 8), nn.Parameter(R(8, 6)), Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.einsum("bd,de->be", self.one(x).relu(), self.weight)
        out: Tensor = self.two(found.relu())
        return out


def after(*parts: nn.Module, width: int = 8, left: int = 8) -> nn.Module:
    return nn.Sequential(Conv2d(3, width, 3), *parts, Conv2d(left, 2, 1))


def pair(forward: Callable[..., Any], width: int = 8) -> nn.Module:
    return Of(forward, a=Linear(4, width), b=Linear(4, width), o=Linear(8, 2))


def linear(forward: Callable[..., Any], width: int = 8) -> nn.Module:
    return Of(lambda m, x: m["o"](forward(m["a"](x))), a=Linear(4, width), o=Linear(8, 2))


def halves(x: Tensor) -> Tensor:
    one, other = x.chunk(2, -1)
    return one * other.sigmoid()


def attention() -> nn.Module:
    return Of(
        lambda m, x: m["o"](m["h"](m["a"](x, x, x)[0]).relu()),
        a=nn.MultiheadAttention(4, 2, batch_first=True),
        h=Linear(4, 10),
        o=Linear(10, 2),
    )


def recurrent() -> nn.Module:
    return Of(
        lambda m, x: m["o"](m["h"](m["r"](m["e"](x))[0]).relu()),
        e=Linear(4, 8),
        r=nn.LSTM(8, 6, batch_first=True),
        h=Linear(6, 8),
        o=Linear(8, 2),
    )


def normed() -> nn.Module:
    own = nn.utils.parametrizations.weight_norm(Linear(4, 8))
    return nn.Sequential(own, nn.ReLU(), Linear(8, 6), nn.ReLU(), Linear(6, 2))


IMAGES, ROWS, SERIES = (2, 3, 8, 8), (3, 4), (2, 5, 4)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[int]]] = {
    "transposed": (
        lambda: after(nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), left=6),
        IMAGES,
        [8, 6],
    ),
    "transposed depthwise": (lambda: after(nn.ConvTranspose2d(8, 8, 2, 2, groups=8)), IMAGES, [8]),
    "transposed depthwise, twice": (
        lambda: after(nn.ConvTranspose2d(8, 16, 2, 2, groups=8), left=16),
        IMAGES,
        [8],
    ),
    "transposed in groups": (
        lambda: after(nn.ConvTranspose2d(8, 6, 3, 2, groups=2), nn.BatchNorm2d(6), left=6),
        IMAGES,
        [4, 3],
    ),
    "transposed in groups, one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 8, 1), nn.ConvTranspose1d(8, 12, 2, 2, groups=4), nn.Conv1d(12, 2, 1)
        ),
        (2, 4, 9),
        [2, 3],
    ),
    "in groups of several": (
        lambda: after(Conv2d(8, 12, 3, groups=4), nn.ReLU(), Conv2d(12, 6, 1, groups=2), left=6),
        IMAGES,
        [2, 3, 3],
    ),
    "depthwise of the inputs": (
        lambda: nn.Sequential(Conv2d(3, 6, 3, groups=3), Conv2d(6, 8, 1), Conv2d(8, 2, 1)),
        IMAGES,
        [8],
    ),
    "depthwise, twice": (lambda: after(Conv2d(8, 16, 3, groups=8), left=16), IMAGES, [8]),
    "group norm": (lambda: after(nn.GroupNorm(2, 8)), IMAGES, []),
    "instance norm": (lambda: after(nn.InstanceNorm2d(8, affine=True)), IMAGES, [8]),
    "instance norm, plain": (lambda: after(nn.InstanceNorm2d(8)), IMAGES, [8]),
    "batch norm, plain": (lambda: after(nn.BatchNorm2d(8, affine=False)), IMAGES, [8]),
    "of the batch": (lambda: after(nn.BatchNorm2d(8, track_running_stats=False)), IMAGES, [8]),
    "prelu": (lambda: after(nn.PReLU(8)), IMAGES, [8]),
    "dropout": (lambda: after(nn.Dropout2d(), nn.ReLU(inplace=True)), IMAGES, [8]),
    "bilinear": (lambda: after(nn.Upsample(scale_factor=2, mode="bilinear")), IMAGES, [8]),
    "nearest": (lambda: after(nn.Upsample(scale_factor=2)), IMAGES, [8]),
    "pool": (lambda: after(nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(2)), IMAGES, [8]),
    "pixel shuffle": (lambda: after(nn.PixelShuffle(2), width=16, left=4), IMAGES, []),
    "flatten": (
        lambda: nn.Sequential(Conv2d(3, 8, 3), nn.Flatten(), Linear(288, 5), Linear(5, 2)),
        IMAGES,
        [8, 5],
    ),
    "channels last": (
        lambda: after(nn.BatchNorm2d(8)).to(memory_format=torch.channels_last),
        IMAGES,
        [8],
    ),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(4, 8, 1), nn.BatchNorm1d(8), nn.Conv1d(8, 2, 1)),
        (2, 4, 9),
        [8],
    ),
    "three dimensions": (
        lambda: nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.Conv3d(8, 2, 1)),
        (2, 3, 4, 4, 4),
        [8],
    ),
    "positions": (Positions, SERIES, [8]),
    "a bare product": (Bare, ROWS, [8, 6]),
    "weight norm": (normed, ROWS, [6]),
    "recurrent": (recurrent, SERIES, [8]),
    "attention": (attention, SERIES, [10]),
    "encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 16, batch_first=True), SERIES, [16]),
    "halves": (lambda: linear(halves, 16), ROWS, [8]),
    "heads": (lambda: linear(lambda x: x.view(-1, 2, 4).mT.reshape(-1, 8)), ROWS, []),
    "normalized": (lambda: linear(F.normalize), ROWS, []),
    "less the largest": (lambda: linear(lambda x: x - x.amax(-1, keepdim=True)), ROWS, []),
    "reversed": (lambda: linear(lambda x: x[:, torch.arange(7, -1, -1)]), ROWS, []),
    "over time": (lambda: linear(lambda x: x.mean(1)), SERIES, [8]),
    "sums": (lambda: pair(lambda m, x: m["o"](m["a"](x) + m["b"](x))), ROWS, [8]),
    "mixed": (lambda: pair(lambda m, x: m["o"](torch.lerp(m["a"](x), m["b"](x), 0.3))), ROWS, [8]),
    "chosen": (
        lambda: pair(lambda m, x: m["o"](torch.where(m["a"](x) > 0, m["a"](x), m["b"](x)))),
        ROWS,
        [8],
    ),
    "gated by shares": (
        lambda: pair(lambda m, x: m["o"](m["a"](x) * m["b"](x).softmax(-1))),
        ROWS,
        [],
    ),
    "two outputs": (
        lambda: pair(lambda m, x: {"one": m["o"](m["a"](x).relu()), "two": m["b"](x)}),
        ROWS,
        [8],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_computes_the_same(name: str) -> None:
    make, shape, sizes = CASES[name]
    torch.manual_seed(0)
    model, x = make().eval(), R(shape)
    if name == "channels last":
        x = x.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.uniform_(-1, 1)
    found, made = grouped(model, x)
    made = working(model, made, found.layers, over(x), x)
    assert [group.size for group in made.groups] == sizes
    kept = some_of(made.groups, np.random.default_rng(0))
    small = narrowed(model, made.groups, kept)
    expected = outputs(masked(model, found.layers, made.groups, kept), x)
    torch.testing.assert_close(outputs(small, x), expected, rtol=1e-4, atol=1e-5)


def test_a_table_of_vectors_loses_columns() -> None:
    model = Of(lambda m, x: m["o"](m["a"](m["e"](x)).relu()), e=nn.Embedding(10, 8), a=Linear(8, 6),
               o=Linear(6, 2)).eval()  # fmt: skip
    x = torch.randint(0, 10, (2, 5))
    found, made = grouped(model, x)
    assert [group.size for group in made.groups] == [8, 6]
    kept = some_of(made.groups, np.random.default_rng(0))
    small = narrowed(model, made.groups, kept)
    expected = outputs(masked(model, found.layers, made.groups, kept), x)
    torch.testing.assert_close(outputs(small, x), expected)
    assert small.get_submodule("parts.e").embedding_dim == 4
