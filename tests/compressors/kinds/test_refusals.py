"""What is no weight as it stands is left dense, and told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from apportion.compressors.calibration import FullPass
from apportion.compressors.errors import ModelError
from apportion.compressors.kinds.find import find_layers
from tests.compressors.kinds.networks import Net, weight

R = torch.randn


class StandardisedConv(nn.Conv2d):
    """As in BiT and NFNet."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        made = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
        return F.conv2d(x, made, self.bias)


def _pruned() -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2))
    prune.l1_unstructured(net[0], "weight", 0.5)
    return net


def _assembled(s: Any, x: Tensor) -> Tensor:
    made = torch.zeros(6, 8)
    made[:4].copy_(s.w)
    return s.l(F.linear(x, made))


def _written(s: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        s.w.mul_(0.99)
    return s.l(F.linear(x, s.w))


def _sometimes_scaled(s: Any, x: Tensor) -> Tensor:
    return s.l(F.linear(x, s.w) + F.linear(x, 2 * s.w))


def _tied_head(s: Any, ids: Tensor) -> Tensor:
    return F.linear(s.l(s.e(ids)), s.e.weight)


last = nn.Linear
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], str, str]] = {
    "standardised": (
        lambda: nn.Sequential(StandardisedConv(3, 6, 3), nn.Flatten(), nn.Linear(96, 2)),
        lambda: R(2, 3, 6, 6),
        "0.weight",
        "native_batch_norm",
    ),
    "masked": (
        lambda: Net(
            lambda s, x: s.l(F.linear(x, s.w * s.mask)), w=weight(6, 8), mask=R(6, 8), l=last(6, 2)
        ),
        lambda: R(2, 8),
        "w",
        "computed from mask, w (mul)",
    ),
    "pruned": (_pruned, lambda: R(2, 8), "0.weight_orig", "mul"),
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 6)), nn.Linear(6, 2)),
        lambda: R(2, 8),
        "0.parametrizations.weight.original1",
        "_weight_norm_interface",
    ),
    "spectral norm": (
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 6)), nn.Linear(6, 2)),
        lambda: R(2, 8),
        "0.parametrizations.weight.original",
        "div",
    ),
    "merged LoRA": (
        lambda: Net(
            lambda s, x: s.l(F.linear(x, s.w + s.b @ s.a)),
            w=weight(6, 8),
            a=weight(2, 8),
            b=weight(6, 2),
            l=last(6, 2),
        ),
        lambda: R(2, 8),
        "w",
        "mm, add",
    ),
    "assembled": (
        lambda: Net(_assembled, w=weight(4, 8), l=last(6, 2)),
        lambda: R(2, 8),
        "w",
        "copy_",
    ),
    "written to": (
        lambda: Net(_written, w=weight(6, 8), l=last(6, 2)),
        lambda: R(2, 8),
        "w",
        "forward writes into it",
    ),
    "used as it is and scaled": (
        lambda: Net(_sometimes_scaled, w=weight(6, 8), l=last(6, 2)),
        lambda: R(2, 8),
        "w",
        "mul",
    ),
    "embedding and head": (
        lambda: Net(_tied_head, e=nn.Embedding(11, 8), l=last(8, 8)),
        lambda: torch.randint(0, 11, (2, 5)),
        "e.weight",
        "several ways (embedding and linear)",
    ),
    "flipped": (
        lambda: Net(lambda s, x: s.l(F.linear(x, s.w.flip(1))), w=weight(6, 8), l=last(6, 2)),
        lambda: R(2, 8),
        "w",
        "in another order",
    ),
    "one kernel for all channels": (
        lambda: Net(
            lambda s, x: s.l(F.conv1d(x, s.w.expand(3, 1, 3), groups=3)),
            w=weight(1, 1, 3),
            l=last(4, 2),
        ),
        lambda: R(2, 3, 6),
        "w",
        "one value stands in several",
    ),
    "constant inputs": (
        lambda: Net(
            lambda s, x: s.l(x) + F.linear(s.c, s.w), w=weight(2, 8), c=R(1, 8), l=last(8, 2)
        ),
        lambda: R(2, 8),
        "w",
        "do not depend on the data",
    ),
    "never used": (
        lambda: Net(lambda s, x: s.l(x), l=last(8, 2), idle=last(8, 2)),
        lambda: R(2, 8),
        "idle.weight",
        "never used by the calibration data",
    ),
    "an expert without inputs": (
        lambda: Net(lambda s, x: s.l(F.linear(x, s.w[1])), w=weight(2, 8, 8), l=last(8, 2)),
        lambda: R(2, 8),
        "w",
        "a part of it is never used",
    ),
    "an operation that no kind reads": (
        lambda: Net(lambda s, x: s.l(s.b(x, x)), b=nn.Bilinear(8, 8, 8), l=last(8, 2)),
        lambda: R(2, 8),
        "b.weight",
        "_trilinear",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_plain_weight_stays_dense_and_is_named(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    make, data, parameter, reason = CASES[name]
    model, batch = make().eval(), data()
    found = find_layers(model, FullPass(lambda: [batch]))
    assert reason in found.dense[parameter]
    names = [p for layer in found.layers if layer.place for p in layer.place.parameters]
    assert names
    if name != "an expert without inputs":
        assert parameter not in names
    (line,) = [record.getMessage() for record in caplog.records]
    assert "stay dense" in line
    assert f"{parameter} (" in line


def test_nothing_left_is_an_error_with_the_reasons() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 6))).eval()
    with pytest.raises(ModelError, match="nothing to compress; 0.parametrizations.*weight_norm"):
        find_layers(model, FullPass(lambda: [R(2, 8)]))
    with pytest.raises(ModelError, match="nothing to compress$"):
        find_layers(nn.ReLU(), FullPass(lambda: [R(2, 8)]))


def test_later_batches_are_asked_for_what_the_first_did_not_use() -> None:
    model = Net(lambda s, x: s.a(x) if x.sum() > 0 else s.b(x), a=last(8, 2), b=last(8, 2)).eval()
    batches = [torch.ones(2, 8), torch.ones(2, 8), -torch.ones(4, 8)]
    found = find_layers(model, FullPass(lambda: batches))
    assert [layer.name for layer in found.layers] == ["a", "b"]
    assert not found.dense
    assert found.macs == {"a": 8, "b": 8}  # 16 for half of the samples each


def test_a_table_that_is_only_added_is_not_worth_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Net(lambda s, x: s.l(x + s.p), l=last(8, 2), p=weight(5, 8)).eval()
    found = find_layers(model, FullPass(lambda: [R(2, 5, 8)]))
    assert "add" in found.dense["p"]
    assert not caplog.records


def test_scripted_modules_are_seen_through_and_frozen_ones_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    found = find_layers(
        nn.Sequential(torch.jit.script(inner), nn.Linear(8, 2)).eval(), FullPass(lambda: [R(2, 8)])
    )
    assert [layer.name for layer in found.layers] == ["0.0", "1"]
    frozen = torch.jit.freeze(torch.jit.script(inner))
    found = find_layers(nn.Sequential(frozen, nn.Linear(8, 2)).eval(), FullPass(lambda: [R(2, 8)]))
    assert [layer.name for layer in found.layers] == ["1"]
    assert "no parameter" in caplog.text
