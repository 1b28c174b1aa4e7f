"""Calibration by whole passes and block by block: the same numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.compressors.activations import calibrate_activations
from apportion.compressors.blocks import BlockPass, blocks_of
from apportion.compressors.calibration import FullPass, call, count_samples, over
from apportion.compressors.corrections import correct, record, retune_batchnorm
from apportion.compressors.errors import ConfigurationError, DataError
from apportion.compressors.hessian import collect_hessians
from apportion.compressors.kinds.find import find_layers
from tests.compressors.kinds.networks import Net

R = torch.randn


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x)).relu()


def convolutions() -> tuple[nn.Module, list[Any]]:
    """A stem, blocks with shortcuts, a head; the first block is called twice."""
    blocks = nn.ModuleList(Residual() for _ in range(3))

    def run(s: Any, x: Tensor) -> Tensor:
        x = start = s.stem(x)
        for block in [s.blocks[0], *s.blocks]:
            x = block(x)
        return s.head((x + start).mean((2, 3)))

    net = Net(run, stem=nn.Conv2d(3, 4, 3), blocks=blocks, head=nn.Linear(4, 2))
    return net, [R(4, 3, 8, 8), R(4, 3, 8, 8), R(2, 3, 8, 8)]


def transformer() -> tuple[nn.Module, list[Any]]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def run(s: Any, x: Tensor, mask: Tensor) -> Tensor:
        return s.head(s.encoder(x, src_key_padding_mask=mask).mean(1))

    net = Net(run, encoder=nn.TransformerEncoder(layer, 3), head=nn.Linear(8, 2))
    batches = [{"x": R(n, 5, 8), "mask": torch.arange(5).expand(n, 5) > 3} for n in (4, 2)]
    return net, batches


def mixed(batch: Any) -> int:
    """One batch holds other tensors than samples."""
    return len(batch["x"]) if isinstance(batch, dict) else len(batch)


@pytest.fixture(params=[convolutions, transformer])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, FullPass, BlockPass]:
    torch.manual_seed(0)
    model, batches = request.param()
    whole = FullPass(lambda: batches, mixed)
    blocks = BlockPass(lambda: batches, mixed, blocks=blocks_of(model))
    assert len(blocks.blocks) == 3
    return model.eval(), whole, blocks


def test_hessians_block_by_block_are_the_same(
    case: tuple[nn.Module, FullPass, BlockPass],
) -> None:
    model, whole, blocks = case
    found = find_layers(model, whole)
    for layers in (found.layers, [replace(own, by_module=False) for own in found.layers]):
        expected = collect_hessians(model, layers, whole)
        made = collect_hessians(model, layers, blocks)
        torch.testing.assert_close(made, expected)
        once = [name for name in expected if not name.startswith("blocks.0")]
        assert all(torch.equal(made[name], expected[name]) for name in once)  # to the bit
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_batch_waits_before_each_block_until_all_have_come(
    case: tuple[nn.Module, FullPass, BlockPass],
) -> None:
    model, _, blocks = case
    order: list[str] = []
    for name in blocks.blocks:
        model.get_submodule(name).register_forward_pre_hook(lambda *_, n=name: order.append(n))
    blocks.run(model)
    count = len(list(blocks.batches()))
    stages = [order[i : i + count] for i in range(0, len(order), count)]
    assert all(len(set(stage)) == 1 for stage in stages)
    assert len(stages) >= 3


@pytest.mark.parametrize("name", ["batchnorm", "statistics", "bias"])
def test_corrections_block_by_block_are_the_same(name: str) -> None:
    torch.manual_seed(0)
    dense, batches = convolutions()
    dense.eval()
    retune_batchnorm(dense, over(*batches))
    damaged = copy.deepcopy(dense)
    with torch.no_grad():
        for p in damaged.parameters():
            p.mul_((torch.rand_like(p) < 0.7).float())
    made = []
    blocks = BlockPass(lambda: batches, blocks=blocks_of(dense))
    for calibration in (over(*batches), blocks):
        model = copy.deepcopy(damaged)
        correct(name, model, calibration, record(dense, calibration))
        made.append(model.state_dict())
    torch.testing.assert_close(made[0], made[1])
    assert any(not torch.equal(damaged.state_dict()[key], v) for key, v in made[0].items())


def test_activation_grids_block_by_block_are_the_same() -> None:
    torch.manual_seed(0)
    model, batches = convolutions()
    layers = find_layers(model.eval(), over(*batches)).layers
    blocks = BlockPass(lambda: batches, blocks=blocks_of(model))
    grids = [calibrate_activations(model, layers, c, [4, 8]) for c in (over(*batches), blocks)]
    assert grids[0] == grids[1]
    assert set(grids[0]) == {layer.name for layer in layers}


def test_what_a_model_raises_ends_the_pass_where_it_is() -> None:
    def run(s: Any, x: Tensor) -> Tensor:
        x = s.blocks[1](s.blocks[0](x))
        if len(x) == 3:
            raise RuntimeError("three")
        return x

    model = Net(run, blocks=nn.ModuleList(nn.Linear(2, 2) for _ in range(2)))
    blocks = BlockPass(lambda: [R(2, 2), R(3, 2), R(4, 2)], blocks=["blocks.0", "blocks.1"])
    with pytest.raises(RuntimeError, match="three"):
        blocks.run(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
    fine = BlockPass(lambda: [R(2, 2), R(4, 2)], blocks=["blocks.0", "blocks.1"])
    assert fine.run(model) == 6


def test_a_block_that_the_model_lacks_is_named() -> None:
    with pytest.raises(ConfigurationError, match="no module 'layers.9'"):
        BlockPass(lambda: [R(2, 2)], blocks=["layers.9"]).run(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("batch", "samples"),
    [(R(3, 2), 3), ((R(4, 2), R(4)), 4), ({"a": R(5, 2), "b": R(5)}, 5), ([R(6, 2)], 6)],
)
def test_samples_of_any_tree(batch: Any, samples: int) -> None:
    assert count_samples(batch) == samples
    with pytest.raises(DataError, match="no tensor"):
        count_samples({"a": 1})


@pytest.mark.parametrize(
    ("batch", "forward"),
    [
        ((R(3, 2), R(3, 2)), lambda a, b: (a, b)),
        ({"b": R(3, 2), "a": R(3, 2)}, lambda *, a, b: (a, b)),
        (R(3, 2), lambda a: (a,)),
        ([R(3, 2)], lambda a: tuple(a)),
    ],
)
def test_batches_are_fed_as_they_are_made(batch: Any, forward: Callable[..., Any]) -> None:
    expected = [batch["a"], batch["b"]] if isinstance(batch, dict) else list(batch)
    given = call(Net(lambda _s, *args, **kwargs: forward(*args, **kwargs)), batch)
    flat = [batch] if isinstance(batch, Tensor) else expected
    assert all(a is b for a, b in zip(given, flat, strict=True))


def test_a_pass_with_progress_keeps_no_batches() -> None:
    alive: list[int] = []
    count = 0

    class Tracked(Tensor):
        def __del__(self) -> None:
            nonlocal count
            count -= 1

    def batches() -> Any:
        nonlocal count
        for _ in range(6):
            count += 1
            yield R(2, 2).as_subclass(Tracked)

    model = Net(lambda _s, _x: alive.append(count))
    steps: list[tuple[str, int, int]] = []
    FullPass(batches, count=6).run(model, None, lambda *step: steps.append(step), "run")
    assert max(alive) <= 2
    assert [done for _, done, _ in steps] == [0, 1, 2, 3, 4, 5, 1]
    assert {total for _, _, total in steps[:-1]} == {6}


def test_hessians_count_the_samples_that_the_caller_says() -> None:
    """Not the keys of a dict, nor the windows that a model moves into the batch."""
    torch.manual_seed(0)
    model = Net(lambda s, x, mask: s.l((x * mask).flatten(0, 1)), l=nn.Linear(4, 3)).eval()
    batch = {"mask": torch.ones(1, 1, 4), "x": R(5, 7, 4)}
    data = FullPass(lambda: [batch], lambda b: len(b["x"]))
    found = find_layers(model, data)
    x = batch["x"].flatten(0, 1).double()
    torch.testing.assert_close(collect_hessians(model, found.layers, data)["l"][0], 2 * x.T @ x / 5)
    assert found.macs == {"l": 7 * 12}
