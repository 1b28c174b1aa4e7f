"""Layers that are parts of parameters, or no module's: built, stitched, scored, costed, timed."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apportion.compressors.activations import quantize_input
from apportion.compressors.calibration import over
from apportion.compressors.errors import ConfigurationError, ModelError
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.levels import DENSE, expand_levels, parse_level
from apportion.db.layers.build import build_database
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.costs.alone import timed_alone
from apportion.evaluators.costs.measure import measure_latency
from apportion.evaluators.costs.model import cost_tables
from apportion.evaluators.costs.runtimes import TorchRuntime
from apportion.evaluators.data.splits import TensorSplit
from apportion.evaluators.rewriting.reduced import reduce_layers
from apportion.evaluators.scoring.segments import cut
from apportion.evaluators.scoring.stitched import StitchedScorer
from apportion.evaluators.training.config import AdaPruneConfig, RecoveryConfig
from apportion.evaluators.training.held import Hold, held
from apportion.evaluators.training.recovery import check_held
from apportion.evaluators.workloads.workload import Workload, model_fingerprint

LEVELS = ["dense", "unstr-0.50", "rtn:w3", "w8a8"]


class Parts(nn.Module):
    """A transposed convolution, attention, a recurrent layer, experts and a transposed matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(1, 8, 2, stride=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.gru = nn.GRU(8, 4, batch_first=True)
        self.experts = nn.Parameter(torch.randn(2, 6, 4) * 0.5)
        self.head = nn.Parameter(torch.randn(6, 3) * 0.5)
        self.other = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.gru(x)[0].mean(1)
        x = x @ self.experts[0].T + x @ self.experts[1].T
        return self.other(input=x @ self.head)


@pytest.fixture(scope="module")
def workload() -> Workload:
    torch.manual_seed(0)
    inputs = torch.randn(12, 1, 5)
    split = TensorSplit(inputs, torch.randint(0, 3, (12,)))
    return Workload(Parts().eval(), split, split, split, batch_size=4)


@pytest.fixture(scope="module")
def database(workload: Workload, tmp_path_factory: pytest.TempPathFactory) -> LayerDatabase:
    return made(workload, tmp_path_factory.mktemp("parts") / "db")


def made(workload: Workload, path: Path) -> LayerDatabase:
    batches = over(*(x for x, _ in workload.calibration.batches(4)))
    return build_database(
        path,
        workload.model,
        find_layers(workload.model, batches),
        batches,
        expand_levels(LEVELS),
        model_fingerprint=model_fingerprint(workload.model),
        calibration_fingerprint="c",
    )


def stitched(workload: Workload, database: LayerDatabase, candidate: tuple[int, ...]) -> nn.Module:
    model = copy.deepcopy(workload.model)
    levels = database.levels()
    picks = {n: parse_level(levels[n][i]) for n, i in zip(levels, candidate, strict=True)}
    database.stitch(model, picks)
    return model


def test_every_weight_is_a_layer_and_inputs_are_quantized_where_modules_take_them(
    database: LayerDatabase,
) -> None:
    levels = database.levels()
    assert list(levels) == [
        "experts.0",
        "experts.1",
        "head",
        "up",
        "attention.in_proj.q",
        "attention.in_proj.k",
        "attention.in_proj.v",
        "attention.out_proj",
        "gru.ih_l0",
        "gru.hh_l0",
        "other",
    ]
    assert [name for name, own in levels.items() if "w8a8" in own] == ["up", "other"]
    assert database.layers["other"].place is None
    assert database.layers["head"].place is not None
    assert LayerDatabase.open(database.path).layers == database.layers


def test_scores_are_those_of_stitched_models(workload: Workload, database: LayerDatabase) -> None:
    counts = [len(own) for own in database.levels().values()]
    rng = np.random.default_rng(0)
    scorers = [
        StitchedScorer(workload, database, "loss", "running", prefix_bytes=n) for n in (0, 1 << 30)
    ]
    dense = workload.model(workload.calibration.batch[0])
    for _ in range(12):
        candidate = tuple(int(rng.integers(n)) for n in counts)
        scores = [scorer.score(candidate) for scorer in scorers]
        with torch.no_grad():
            outputs = stitched(workload, database, candidate)(workload.calibration.batch[0])
        loss = nn.functional.cross_entropy(outputs.double(), workload.calibration.batch[1])
        assert scores[0] == scores[1] == pytest.approx(float(loss), rel=1e-5)
    assert torch.equal(workload.model(workload.calibration.batch[0]), dense)


def test_one_part_changes_nothing_beside_it(workload: Workload, database: LayerDatabase) -> None:
    names = list(database.layers)
    candidate = [0] * len(names)
    candidate[names.index("attention.in_proj.k")] = 1
    candidate[names.index("experts.1")] = 2
    model, dense = stitched(workload, database, tuple(candidate)), workload.model
    for name, value in model.named_parameters():
        before = dense.get_parameter(name)
        if name == "attention.in_proj_weight":
            assert torch.equal(value[:8], before[:8])
            assert int((value[8:16] == 0).sum()) == 32
            assert torch.equal(value[16:], before[16:])
        elif name == "experts":
            assert torch.equal(value[0], before[0])
            assert torch.equal(value[1], database.weight("experts.1", "rtn:w3"))
        else:
            assert torch.equal(value, before)


def test_recorded_errors_are_of_the_layers_own_outputs(
    workload: Workload, database: LayerDatabase
) -> None:
    """The last but one, by hand: x @ head, on what reaches it in the dense model."""
    model: Any = workload.model
    inputs = workload.calibration.batch[0]
    seen: list[Tensor] = []
    handle = model.other.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["input"]), with_kwargs=True
    )
    changed = copy.deepcopy(model)
    record = database.layers["head"]
    with torch.no_grad():
        record.where.write(changed, database.weight("head", "rtn:w3"))
        model(inputs)
        changed.other.forward = lambda input: input
        after = changed(inputs)
    handle.remove()
    moved = float((after - seen[0]).double().square().sum() / len(inputs))
    assert database.entry("head", "rtn:w3").error == pytest.approx(moved, rel=1e-4)


def test_segments_know_which_of_them_uses_a_part() -> None:
    attention = nn.TransformerEncoderLayer(8, 2, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), attention, nn.ReLU(), nn.Linear(8, 2)).eval()
    found = find_layers(model, over(torch.randn(3, 4, 8)))
    layers = {
        own.name: [model.get_parameter(n) for n in own.where.parameters] for own in found.layers
    }
    where = cut(model, layers, lambda batch: batch).where
    inner = {where[name] for name in layers if name.startswith("2.")}
    assert len(inner) == 1
    assert where["0"] < inner.pop() < where["4"]


def test_shared_memory_is_counted_once_and_attention_in_the_base(
    workload: Workload, database: LayerDatabase, tmp_path: Path
) -> None:
    tables = cost_tables(workload.model, database)
    assert tables["params"].dense == sum(p.numel() for p in workload.model.parameters())
    attention = 2 * 10 * 10 * 8  # ten positions with each other, twice
    assert tables["flops"].base == attention
    assert tables["bops"].base == attention * 32 * 32
    tied: Any = copy.deepcopy(workload.model)
    tied.extra = nn.Linear(3, 3)
    tied.extra.weight.data = tied.other.weight.data
    own = made(replace(workload, model=tied), tmp_path / "tied")
    costs = cost_tables(tied, own)
    assert costs["params"].dense == tables["params"].dense + 3  # the bias alone is its own
    assert costs["params"].base == tables["params"].base + 3
    assert costs["bits"].dense == tables["bits"].dense + 96
    assert own.layers["other"].aliases == ("extra",)


def test_parts_are_timed_as_the_products_that_they_are(
    workload: Workload, database: LayerDatabase
) -> None:
    example = workload.calibration.batch[0][:2]
    modules, inputs = timed_alone(workload.model, database, example)
    for name, record in database.layers.items():
        module, x = modules[name], inputs[name]
        assert module(x) is not None
        if isinstance(module, nn.Linear):
            assert x.numel() // x.shape[-1] * module.weight.numel() == 2 * record.macs
    measured = measure_latency(workload.model, database, example, TorchRuntime(1))
    assert set(measured.layers) == set(database.layers)
    assert all(DENSE in row for row in measured.layers.values())


def test_training_that_cannot_hold_parts_is_refused(
    workload: Workload, database: LayerDatabase
) -> None:
    check_held(workload.model, database, RecoveryConfig())
    with pytest.raises(ConfigurationError, match=r"layer 'gru\.ih_l0', as it is a part of a GRU"):
        check_held(workload.model, database, RecoveryConfig(adaprune=AdaPruneConfig()))


def test_parts_are_held_while_all_of_the_parameter_trains(
    workload: Workload, database: LayerDatabase
) -> None:
    model = copy.deepcopy(workload.model)
    trained = [name for name in database.layers if "gru" not in name]
    levels = {
        name: parse_level("rtn:w3") if i % 2 else parse_level("unstr-0.50")
        for i, name in enumerate(trained)
    }
    database.stitch(model, {**dict.fromkeys(database.layers, DENSE), **levels})
    holds, before = {}, {}
    for name in trained:
        record = database.layers[name]
        weight = record.where.read(model).reshape(record.shape).clone()
        before[name] = weight
        grid = database.grid(name, levels[name])
        mask = weight != 0 if levels[name].sparsity is not None else None
        holds[name] = Hold(mask, grid, True, record.place, record.shape)
    inputs = workload.task.inputs(workload.calibration.batch)
    with torch.no_grad():
        wanted = model(inputs)
    with held(model, holds) as grids:
        torch.testing.assert_close(model(inputs), wanted)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for _ in range(3):
            optimizer.zero_grad()
            (model(inputs) - 1).square().mean().backward()
            optimizer.step()
    for name in trained:
        record = database.layers[name]
        after = record.where.read(model).reshape(record.shape)
        mask, grid = holds[name].mask, grids.get(name)
        if mask is not None:
            assert not torch.equal(after, before[name]), name
            assert not bool((after[~mask] != 0).any()), name
        if grid is not None:
            flat = after.flatten(1)
            assert torch.equal(grid.values(grid.codes(flat)), flat), name
    assert all("parametrizations" not in name for name in model.state_dict())


def test_a_model_that_lacks_a_part_is_told(workload: Workload, database: LayerDatabase) -> None:
    model: Any = copy.deepcopy(workload.model)
    del model.experts
    with pytest.raises(ModelError, match=r"no layer 'experts\.0'.*no parameter 'experts'"):
        database.stitch(model, dict.fromkeys(database.layers, DENSE))


def test_candidates_in_any_order_leave_the_same_weights(
    workload: Workload, database: LayerDatabase
) -> None:
    counts = [min(2, len(own)) for own in database.levels().values()]
    drawn = list(itertools.islice(itertools.product(*(range(n) for n in counts)), 40))
    scorer = StitchedScorer(workload, database, "loss", "running")
    forwards = [scorer.score(c) for c in drawn]
    again = StitchedScorer(workload, database, "loss", "running")
    assert [again.score(c) for c in reversed(drawn)] == forwards[::-1]


def test_exported_models_take_inputs_by_keyword(
    workload: Workload, database: LayerDatabase
) -> None:
    """`other` is called so; its inputs are quantized, and it is run in a smaller shape."""
    pytest.importorskip("onnxruntime", reason="apportion[onnx] is not installed")
    from apportion.evaluators.rewriting import onnx_model
    from apportion.evaluators.rewriting.onnx_model import Quantized

    inputs = workload.calibration.batch[0][:4]

    class Last(nn.Module):
        def __init__(self, other: nn.Module) -> None:
            super().__init__()
            self.other: Any = other

        def forward(self, x: Tensor) -> Tensor:
            return self.other(input=x.flatten(1)[:, :3])

    level, model = "w8a8", Last(copy.deepcopy(workload.model.get_submodule("other")))
    model.other.weight.data = database.weight("other", level)
    entry = database.entry("other", level)
    what = Quantized(database.grid("other", level), entry.activation)
    proto = onnx_model.to_onnx(model.eval(), inputs, {"other": what})
    quantize_input(model.other, entry.activation)
    made = onnx_model.run(onnx_model.session(proto, 1), inputs)
    torch.testing.assert_close(made, model(inputs), rtol=1e-3, atol=1e-3)
    quantize_input(model.other, None)
    with torch.no_grad():
        model.other.weight[0] = 0
        expected = model(inputs)
        reduce_layers(model, ["other"])
        torch.testing.assert_close(model(inputs), expected)
