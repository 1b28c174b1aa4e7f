"""Sharing is by storage: one tensor, however a user's model says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn

from apportion.compressors.errors import ModelError
from apportion.db.layers.packed import load_packed, save_packed
from apportion.evaluators.models import build as models
from apportion.evaluators.models.build import build_model, load_weights
from apportion.evaluators.models.sharing import share_by_storage
from apportion.search.export.exporting import Chosen, export
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import prepare
from tests.fitted import fitted


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.flatten(1)).relu()
        return self.head(self.b(x).relu())


def by_data(net: Net) -> None:
    net.b.weight.data = net.a.weight.data


def by_a_new_parameter(net: Net) -> None:
    net.b.weight = nn.Parameter(net.a.weight.detach())


def by_one_parameter(net: Net) -> None:
    net.b.weight = net.a.weight


def by_a_part_of_a_flat_buffer(net: Net) -> None:
    """As frameworks that flatten parameters do: all lie in one storage, and two in one place."""
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    at = 0
    for parameter in net.parameters():
        parameter.data = flat[at : at + parameter.numel()].view(parameter.shape)
        at += parameter.numel()
    net.b.weight.data = net.a.weight.data


WAYS = [by_data, by_a_new_parameter, by_one_parameter, by_a_part_of_a_flat_buffer]


def users(way: Callable[[Net], None], seed: int = 0) -> Net:
    """The model as its user makes it."""
    torch.manual_seed(seed)
    net = Net().eval()
    way(net)
    return net


@pytest.mark.parametrize("way", WAYS)
def test_what_is_reported_is_what_the_users_own_model_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[[Net], None]
) -> None:
    monkeypatch.setitem(models.MODELS, "mine", lambda: fitted(users(way), "head"))
    content = {
        "workload": {"model": "mine", "data": {"kind": "digits"}, "calibration_samples": 128},
        "database": {"path": str(tmp_path / "db"), "levels": ["dense", "unstr-0.80"]},
        "budgets": {"params": 0.6},
    }
    with prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem:
        layers = problem.database.layers
        assert list(layers) == ["a", "head"]
        assert layers["a"].aliases == ("b",)
        weights, biases = 64 * 64 + 10 * 64, 64 + 64 + 10  # the shared one once
        assert problem.full_space.dense["params"] == weights + biases
        assert problem.full_space.dense["bits"] == 32 * (weights + biases)
        chosen = Chosen((1,) * len(layers), 0.0, {})
        done = export(chosen, problem, tmp_path / "out", formats=("safetensors", "compressed"))
        inputs, labels = next(problem.workload.test.batches(1000))

    packed = users(way, seed=1)
    packed.load_state_dict(load_packed(done.files["model.packed"]))
    ours = users(way, seed=1)
    load_weights(ours, done.files["model.safetensors"])
    loaded = [packed, ours]
    if way is not by_a_part_of_a_flat_buffer:  # which safetensors' own function does not take
        loaded.append(users(way, seed=1))
        load_model(loaded[-1], str(done.files["model.safetensors"]))
    for model in loaded:
        assert torch.equal(model.a.weight, model.b.weight)
        assert int((model.a.weight == 0).sum()) == round(0.8 * 64 * 64)
        with torch.no_grad():
            found = 100 * float((model(inputs).argmax(1) == labels).double().mean())
        assert found == pytest.approx(list(done.content["accuracy"].values())[-1], abs=0.01)
    stored = sum(t.numel() for t in load_file(done.files["model.safetensors"]).values())
    assert stored == weights + biases


def transposed(net: Net) -> None:
    net.b.weight = nn.Parameter(net.a.weight.detach().t())


def part(net: Net) -> None:
    net.head.weight = nn.Parameter(net.a.weight.detach()[:10])


def every_other_row(net: Net) -> None:
    net.head.weight = nn.Parameter(net.a.weight.detach()[1:21:2])


def other_type(net: Net) -> None:
    net.register_buffer("raw", net.a.weight.detach().view(torch.int32))


def buffer(net: Net) -> None:
    net.register_buffer("copy", net.a.weight.detach())


def expanded(net: Net) -> None:
    net.head.bias = nn.Parameter(torch.ones(1).expand(10))


def attribute(net: Net) -> None:
    net.kept = net.a.weight.detach()


def attributes(net: Net) -> None:
    net.kept = [net.a.weight.detach()[2:]]  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("way", "names"),
    [
        (transposed, ["'a.weight'", "'b.weight'"]),
        (part, ["'a.weight'", "'head.weight'"]),
        (every_other_row, ["'a.weight'", "'head.weight'"]),
        (other_type, ["'a.weight'", "buffer 'raw'"]),
        (buffer, ["'a.weight'", "buffer 'copy'"]),
        (expanded, ["'head.bias'"]),
        (attribute, ["'a.weight'", r"a tensor \[64, 64\] that a module has as an attribute"]),
        (attributes, ["'a.weight'", r"a tensor \[62, 64\] that a module has as an attribute"]),
    ],
)
def test_other_ways_to_share_a_parameter_are_refused_by_name(
    way: Callable[[Net], None], names: list[str]
) -> None:
    for each in names:
        with pytest.raises(ModelError, match=f"model 'mine': .*{each}.* share memory"):
            share_by_storage(users(way), "mine")


def columns(net: Net) -> None:
    """Interleaved in memory, with no element in common."""
    both = torch.randn(64, 128)
    net.a.weight, net.b.weight = nn.Parameter(both[:, ::2]), nn.Parameter(both[:, 1::2])


def spectral(net: Net) -> None:
    nn.utils.spectral_norm(net.a)


def tables(net: Net) -> None:
    """Buffers that are parts of one another, as of sines and cosines; an expanded one."""
    table = torch.randn(4, 8)
    net.register_buffer("table", table)
    net.register_buffer("first", table[0])
    net.register_buffer("same", table[0])
    net.register_buffer("mask", torch.ones(1).expand(8))


@pytest.mark.parametrize("way", [columns, spectral, tables])
def test_what_shares_nothing_that_is_compressed_passes(
    tmp_path: Path, way: Callable[[Net], None]
) -> None:
    model, expected = users(way), users(way).state_dict()
    share_by_storage(model, "mine")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
    kept = {id(buffer): buffer.untyped_storage().data_ptr() for buffer in model.buffers()}
    assert len(set(kept.values())) == len(kept)
    if way is tables:
        assert model.first is model.same
    save_packed(tmp_path / "m", model.state_dict(), {})
    other = users(way, seed=1)
    share_by_storage(other, "mine")  # torch itself writes to no expanded tensor
    other.load_state_dict(load_packed(tmp_path / "m"))


def test_recurrent_layers_keep_their_list() -> None:
    """torch's RNNs have their parameters in a list, too, which their forward reads."""
    net = nn.LSTM(4, 4, num_layers=2)
    net.weight_ih_l1.data = net.weight_ih_l0.data
    share_by_storage(net, "mine")
    assert net.weight_ih_l1 is net.weight_ih_l0
    assert sum(weight is net.weight_ih_l0 for weight in net._flat_weights) == 2


def test_weights_files_of_models_that_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.MODELS, "mine", lambda: users(by_data))
    state = {key: tensor.clone() for key, tensor in users(by_data, seed=3).state_dict().items()}
    save_file(state, tmp_path / "both.safetensors")
    one = {key: tensor for key, tensor in state.items() if key != "a.weight"}
    save_file(one, tmp_path / "one.safetensors")
    for name in ("both", "one"):
        model = build_model("mine", str(tmp_path / f"{name}.safetensors"))
        assert torch.equal(model.get_parameter("a.weight"), state["b.weight"])
        assert model.get_parameter("a.weight") is model.get_parameter("b.weight")
    save_file({**state, "b.weight": state["b.weight"] + 1}, tmp_path / "differ.safetensors")
    with pytest.raises(ModelError, match="'a.weight' and 'b.weight' are one tensor in the model"):
        build_model("mine", str(tmp_path / "differ.safetensors"))


def test_a_square_weight_and_its_transpose_are_packed_apart(tmp_path: Path) -> None:
    weight = torch.randn(8, 8)
    save_packed(tmp_path / "m", {"a": weight, "b": weight.t()}, {})
    assert torch.equal(load_packed(tmp_path / "m")["b"], weight.t())
