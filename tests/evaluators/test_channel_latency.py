"""Latency over (inputs kept, outputs kept): tables of pairs are what the layers' grids say, and
what is measured is what the clock said."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apportion.compressors.errors import DataError
from apportion.compressors.groups.find import Grouped
from apportion.compressors.kinds.uses import Found
from apportion.evaluators.costs.channels.counts import Side, channel_costs
from apportion.evaluators.costs.channels.files import channels_csv, read_channels
from apportion.evaluators.costs.channels.grid import ChannelTables, Grid, add_layer
from apportion.evaluators.costs.channels.latency import ChannelLatency, channels_of
from apportion.evaluators.costs.channels.measure import measure_channels, stairs
from apportion.evaluators.costs.runtimes import Runtime, open_runtime
from apportion.evaluators.models.build import build_model
from apportion.search.runs.coupling import channel_space
from tests.compressors.groups.masking import grouped
from tests.compressors.groups.test_find import Graph

CONV = (nn.Conv2d, nn.Linear)


class Clock(Runtime):
    """Runs nothing: a layer takes 2 + 3 in + 5 out + 7 in out, a model 11 more, and 0.5 for every
    value that its layers put out."""

    name = "clock"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def has_fast_kernel(self, module: nn.Module, level: Any) -> bool:  # noqa: ARG002
        return False

    def prepare(
        self,
        model: nn.Module,
        inputs: Any,
        quantized: Mapping[str, Any],  # noqa: ARG002
        reduced: Collection[str],  # noqa: ARG002
        chained: bool,  # noqa: ARG002
    ) -> Callable[[], float]:
        values: list[int] = []

        def add(_m: nn.Module, _a: Any, out: Tensor) -> None:
            values.append(out[0].numel())

        layers: list[Any] = [m for m in model.modules() if isinstance(m, CONV)]
        handles = [layer.register_forward_hook(add) for layer in layers]
        with torch.no_grad():
            model(inputs)
        for handle in handles:
            handle.remove()
        seconds = sum(layer_seconds(*m.weight.shape[1::-1]) for m in layers)
        if isinstance(model, nn.Sequential) and len(model) == 1:
            self.asked.append(repr(model[0]))
            return lambda: seconds
        return lambda: seconds + 11 + 0.5 * sum(values)


def layer_seconds(inputs: int, outputs: int) -> float:
    return float(2 + 3 * inputs + 5 * outputs + 7 * inputs * outputs)


def measured(model: nn.Module, x: Tensor) -> tuple[Found, Grouped, ChannelLatency, Clock]:
    found, groups = grouped(model, x)
    clock = Clock()
    made = measure_channels(
        model, found, groups.groups, x, clock, timer=lambda run: float(run())  # type: ignore[arg-type]
    )  # fmt: skip
    return found, groups, made, clock


def sizes_of(groups: Grouped) -> dict[str, list[int]]:
    return {g.name: sorted({2, g.size // 2, g.size - 1, g.size}) for g in groups.groups}


def test_a_grid_is_bilinear_between_its_points_and_flat_beyond_them() -> None:
    points = (2, 3, 8), (1, 4)
    grid = Grid(*points, np.array([[layer_seconds(i, o) for o in points[1]] for i in points[0]]))
    inputs, outputs = np.meshgrid(np.arange(2, 9), np.arange(1, 5), indexing="ij")
    expected = np.vectorize(layer_seconds)(inputs, outputs)
    np.testing.assert_allclose(grid.at(inputs, outputs), expected)
    assert grid.at(np.array(1), np.array(9)) == layer_seconds(2, 4)
    assert Grid((3,), (5,), np.array([[1.5]])).at(np.array(1), np.array(7)) == 1.5


@pytest.mark.parametrize("steps", [["conv", "add", "depthwise"], ["conv", "gate", "add", "cat"]])
def test_the_whole_is_what_the_clock_says_of_smaller_models(steps: list[str]) -> None:
    """Seconds that are bilinear in channels, and a rest that grows with the layers' outputs, are
    known from the grid, the tables of pairs among them."""
    torch.manual_seed(0)
    model, x = Graph(steps, 0).eval(), torch.randn(2, 3, 6, 6)
    found, groups, made, _ = measured(model, x)
    rng, sizes = np.random.default_rng(0), sizes_of(groups)
    losses = {g: np.arange(len(own))[::-1].astype(float) for g, own in sizes.items()}
    costs = channel_costs(model, found, groups.groups)
    space = channel_space(costs, dict(reversed(sizes.items())), losses, {"latency": 1e6}, made)
    channels = channels_of(found, groups.groups)
    for _ in range(5):
        chosen = {g: int(rng.integers(len(own))) for g, own in sizes.items()}
        kept = {g: sizes[g][i] for g, i in chosen.items()}
        layers = sum(
            layer_seconds(channels.reads[n].count(kept), channels.makes[n].count(kept))
            for n in channels.reads
        )
        expected = layers + 11 + 0.5 * channels.values.count(kept)
        assert made.seconds(kept) == pytest.approx(expected)
        assert made.tables(sizes).total(chosen) == pytest.approx(expected)
        candidate = tuple(chosen[g] for g in space.layers)
        assert space.total("latency", candidate) == pytest.approx(expected)


def test_layers_of_one_shape_are_timed_once() -> None:
    model = build_model("cifar_resnet20")
    _, _, made, clock = measured(model, torch.randn(1, 3, 32, 32))
    assert len(clock.asked) == len(set(clock.asked)) < 25 * 9
    assert len(made.grids) == 20
    assert made.grids["layer3.1.conv2"].inputs == (8, 16, 32, 48, 64)


def test_kernels_that_take_several_channels_at_once_make_stairs() -> None:
    grid = stairs(Grid((8, 16, 32), (3,), np.array([[1.0], [2.0], [4.0]])), 8)
    assert grid.inputs == (8, 9, 16, 25, 32)
    asked = np.array([1, 8, 9, 12, 16, 25, 32])
    assert grid.at(asked, np.full(7, 3)).tolist() == [1, 1, 2, 2, 2, 4, 4]
    assert stairs(grid, 1).inputs == grid.inputs
    model = build_model("cifar_resnet20")
    found, groups = grouped(model, x := torch.randn(1, 3, 32, 32))
    clock = Clock()
    made = measure_channels(
        model, found, groups.groups, x, clock, step=16, timer=lambda run: float(run())  # type: ignore[arg-type]
    )  # fmt: skip
    assert made.grids["layer3.1.conv2"].inputs == (16, 17, 32, 33, 48, 49, 64)
    assert made.grids["conv1"].inputs == (3,)
    assert made.grids["layer3.1.conv2"].at(np.array(20), np.array(64)) == layer_seconds(32, 64)


SIDES = [
    (Side(1, {"a": 2, "b": 1}), Side(0, {"c": 1})),
    (Side(0, {"a": 1, "b": 1, "c": 1}), Side(2, {"a": 1})),
    (Side(0, {"c": 1}), Side(0, {"a": 1, "b": 3})),
    (Side(0, {"a": 1, "b": 1, "c": 2}), Side(5)),
    (Side(0, {"a": 1, "b": 1}), Side(0, {"b": 1, "c": 1})),
]


@pytest.mark.parametrize("sides", SIDES)
def test_more_than_two_groups_are_bounded_from_above(sides: tuple[Side, Side]) -> None:
    """Nowhere below a table of any form, and exact at the largest sizes."""
    rng = np.random.default_rng(0)
    sizes = {"a": np.array([2.0, 4, 7]), "b": np.array([1.0, 5]), "c": np.array([1.0, 2, 3, 6])}
    points = (3, 6, 9, 30), (2, 7, 25)
    grid = Grid(*points, np.sort(np.sort(rng.random((4, 3)), 0), 1))
    made = ChannelTables(0.0, {g: np.zeros(len(own)) for g, own in sizes.items()})
    add_layer(made, grid, *sides, sizes)
    for a, b, c in np.ndindex(3, 2, 4):
        chosen = {"a": a, "b": b, "c": c}
        kept = {g: int(sizes[g][i]) for g, i in chosen.items()}
        true = float(grid.at(*(np.array(side.count(kept)) for side in sides)))
        assert made.total(chosen) >= true - 1e-12
    assert made.total(chosen) == pytest.approx(true)


@pytest.mark.parametrize("sides", SIDES[:4])
def test_what_is_linear_in_what_is_read_is_exact_for_concatenations(
    sides: tuple[Side, Side],
) -> None:
    sizes = {"a": np.array([2.0, 4, 7]), "b": np.array([1.0, 5]), "c": np.array([1.0, 2, 3, 6])}
    points = (1, 9, 40), (1, 7, 40)
    grid = Grid(*points, np.array([[layer_seconds(i, o) for o in points[1]] for i in points[0]]))
    made = ChannelTables(0.0, {g: np.zeros(len(own)) for g, own in sizes.items()})
    add_layer(made, grid, *sides, sizes)
    for a, b, c in np.ndindex(3, 2, 4):
        kept = {"a": int(sizes["a"][a]), "b": int(sizes["b"][b]), "c": int(sizes["c"][c])}
        true = layer_seconds(*(side.count(kept) for side in sides))
        assert made.total({"a": a, "b": b, "c": c}) == pytest.approx(true)


def test_a_file_gives_back_what_was_measured(tmp_path: Path) -> None:
    model, x = Graph(["conv", "add"], 0).eval(), torch.randn(2, 3, 6, 6)
    found, groups, made, _ = measured(model, x)
    path = tmp_path / "channels.csv"
    path.write_text(channels_csv(made))
    again = read_channels(path, found, groups.groups)
    for own in sizes_of(groups).values():
        kept = {g.name: min(own[0], g.size) for g in groups.groups}
        assert again.seconds(kept) == made.seconds(kept)
    assert (again.base, again.slope) == (made.base, made.slope)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows, "end,1,9,2"], "layer .end. has no row with in 2 and out 9"),
        (lambda rows: [r for r in rows if not r.startswith("end")], "has no layer 'end'"),
        (lambda rows: [*rows, "other,1,1,2"], "the model has no layer 'other'"),
        (lambda rows: [*rows, rows[-1]], "line .*: layer 'end' with in .* stands twice"),
        (lambda rows: [*rows, "end,0,1,2"], "line .*: in and out are numbers of channels"),
        (lambda rows: [*rows, "end,1.5,1,2"], "line .*: in and out are numbers of channels"),
        (lambda rows: [*rows, "end,99,1,-2"], "line .*: expected 0 seconds or more; got '-2'"),
        (lambda rows: [*rows, "end,99,1,soon"], "line .*: a number is needed, not 'soon'"),
        (lambda rows: [*rows, "*,1,1,1"], r"layer '\*' has in 0 and out 0 or 1"),
        (lambda rows: ["layer,out,seconds", *rows[1:]], "'in' is missing"),
    ],
)
def test_files_that_are_no_tables_say_where(
    tmp_path: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    model, x = Net().eval(), torch.randn(2, 3, 6, 6)
    found, groups, made, _ = measured(model, x)
    path = tmp_path / "channels.csv"
    path.write_text("\n".join(change(channels_csv(made).splitlines())))
    with pytest.raises(DataError, match=message):
        read_channels(path, found, groups.groups)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.end(F.relu(self.start(x)).mean((2, 3)))
        return out


def test_a_real_runtime_times_every_point() -> None:
    model, x = Net().eval(), torch.randn(2, 3, 16, 16)
    found, groups = grouped(model, x)
    runtime = open_runtime("torch", 1)

    def once(run: Callable[[], object]) -> float:
        run()
        return 1.0

    made = measure_channels(model, found, groups.groups, x, runtime, (0.5, 1.0), timer=once)
    assert made.seconds({"start": 8}) == pytest.approx(1.0)
    assert {n: g.seconds.shape for n, g in made.grids.items()} == {"start": (1, 2), "end": (2, 1)}
