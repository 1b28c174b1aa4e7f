"""The contract of kinds: a weight is read and written where it stands, and its matrix times the
columns of its inputs is what the operation puts out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apportion.compressors.calibration import FullPass, over
from apportion.compressors.errors import ModelError
from apportion.compressors.kinds import naming, products
from apportion.compressors.kinds.feeding import module_columns
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.kinds.products import Call, Product, reads
from apportion.compressors.kinds.watch import Watch, unfused
from apportion.compressors.layers import to_matrix
from apportion.compressors.place import Place, module_weight
from tests.compressors.kinds.networks import CASES, Net, weight

R = torch.randn


@pytest.mark.parametrize("name", [n for n in CASES if "tied" not in n and "embed" not in n])
def test_products_multiply_all_multiply_accumulates(name: str) -> None:
    """Rows x columns x positions is what the product says that it costs."""
    torch.manual_seed(0)
    model, batch = CASES[name].make()

    class Counted(Watch):
        def used(self, product: Product, live: bool) -> None:  # noqa: ARG002
            if product.table:
                return
            matrices = product.view(product.weight)
            columns = product.columns(product.input)
            assert len(columns) == len(matrices)
            macs = sum(m.numel() * x.shape[1] for m, x in zip(matrices, columns, strict=True))
            if "transpose" not in product.kind:  # whose columns hold the zeros between the inputs
                assert macs == product.macs
            assert all(
                x.shape[2] == m[0, 0].numel() for m, x in zip(matrices, columns, strict=True)
            )

    with torch.no_grad(), unfused(model), Counted(model.eval(), batch):
        FullPass(lambda: [batch]).forward(model, batch)


PLACES: dict[str, tuple[Any, Place]] = {
    "whole": (lambda: nn.Linear(4, 6), module_weight(("",), (6, 4))),
    "rows": (lambda: nn.Linear(4, 6), Place(("weight",), (2, 4), (4, 1), 8)),
    "transposed": (lambda: nn.Linear(4, 6), Place(("weight",), (4, 6), (1, 4))),
    "every second column": (lambda: nn.Linear(4, 6), Place(("weight",), (6, 2), (4, 2), 1)),
    "channels last": (
        lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last),
        module_weight(("",), (6, 4, 3, 3)),
    ),
    "a group of channels last": (
        lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last),
        Place(("weight",), (3, 4, 3, 3), (36, 9, 3, 1), 3 * 36),
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_is_written_is_read_and_nothing_else_changes(name: str) -> None:
    torch.manual_seed(0)
    make, place = PLACES[name]
    model = make()
    before = copy.deepcopy(model)
    value = R(place.sizes)
    place.write(model, value)
    assert torch.equal(place.read(model), value)
    assert model.weight.stride() == before.weight.stride()
    changed = int((model.weight != before.weight).sum())
    assert changed == value.numel()
    place.write(model, place.read(before))
    assert torch.equal(model.weight, before.weight)
    assert Place.from_json(place.to_json()) == place


def test_a_model_without_the_place_is_told() -> None:
    with pytest.raises(ModelError, match="no parameter 'x.weight'"):
        module_weight(("x",), (2, 2)).read(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="too small"):
        module_weight(("",), (3, 3)).write(nn.Linear(2, 2), R(3, 3))


@pytest.fixture
def own_kinds() -> Iterator[None]:
    """What a test registers is forgotten."""
    readers, rows = dict(products._READERS), dict(naming._ROWS)
    yield
    for registry, before in ((products._READERS, readers), (naming._ROWS, rows)):
        registry.clear()
        registry.update(before)  # type: ignore[arg-type]


@pytest.mark.usefixtures("own_kinds")
def test_users_register_operations_and_modules_of_their_own() -> None:
    @torch.library.custom_op("apportion_tests::doubled_linear", mutates_args=())
    def doubled_linear(x: Tensor, w: Tensor) -> Tensor:
        return 2 * x @ w.T

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = weight(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return doubled_linear(x, self.both)

    model, x = nn.Sequential(Pair()).eval(), R(5, 4)
    with pytest.raises(ModelError, match="no kind of layer reads doubled_linear"):
        find_layers(model, over(x))

    @reads("apportion_tests::doubled_linear")
    def _read(call: Call) -> list[Product]:
        x, w = call.args
        macs = len(x) * w.numel()
        return [Product("doubled", w, x, lambda w: w[None, None], lambda x: [2 * x[None]], macs)]

    @naming.rows_of(Pair)
    def _rows(_module: nn.Module, _parameter: str) -> list[tuple[str, int]]:
        return [("left", 2), ("right", 4)]

    found = find_layers(model, over(x))
    names = [(own.name, own.kind, own.shape) for own in found.layers]
    assert names == [("0.left", "doubled", (2, 4)), ("0.right", "doubled", (4, 4))]
    assert found.macs == {"0.left": 8, "0.right": 16}


def test_columns_of_a_transposed_convolution_make_its_outputs() -> None:
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False)
    x = R(2, 4, 5, 4)
    (layer,) = find_layers(conv.eval(), over(x)).layers
    matrix = to_matrix(layer.where.read(conv).reshape(layer.shape), layer).reshape(2, 3, -1)
    made = matrix @ module_columns(conv, x, layer.columns).mT
    expected = conv(x).unflatten(1, (2, 3)).permute(1, 2, 0, 3, 4).flatten(2)
    torch.testing.assert_close(made, expected)


def test_a_reused_kernel_at_two_strides_is_one_layer() -> None:
    torch.manual_seed(0)
    model = Net(
        lambda s, x: F.conv1d(x, s.w).mean() + F.conv1d(x, s.w, stride=2).mean(), w=weight(4, 3, 2)
    )
    (layer,) = find_layers(model.eval(), over(R(2, 3, 9))).layers
    assert (layer.name, layer.kind, layer.shape) == ("w", "conv1d", (4, 3, 2))


def test_names_are_those_that_users_know() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.lstm = nn.LSTM(8, 4, bidirectional=True, batch_first=True)
            self.down_proj = weight(2, 8, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.lstm(self.attention(x, x, x)[0])[0].mean(1)
            return torch.cat([x @ self.down_proj[0], x @ self.down_proj[1]])

    torch.manual_seed(0)
    found = find_layers(nn.Sequential(Block()).eval(), over(R(3, 5, 8)))
    assert [layer.name for layer in found.layers] == [
        "0.down_proj.0",
        "0.down_proj.1",
        "0.attention.in_proj.q",
        "0.attention.in_proj.k",
        "0.attention.in_proj.v",
        "0.attention.out_proj",
        "0.lstm.ih_l0",
        "0.lstm.hh_l0",
        "0.lstm.ih_l0_reverse",
        "0.lstm.hh_l0_reverse",
    ]
