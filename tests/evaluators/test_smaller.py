"""Models at channel levels: as small as counted, and scored as what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from apportion.compressors.activations import InputQuantizer
from apportion.compressors.calibration import over
from apportion.compressors.groups.readers import readers_of
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.levels import DENSE, parse_level
from apportion.db.channels.plan import DAMPING
from apportion.evaluators.costs.channels.tables import channel_tables, counts
from apportion.evaluators.rewriting.compensate import without
from apportion.evaluators.rewriting.smaller import Smaller
from apportion.evaluators.scoring.channels import ChannelScorer
from tests.channel_jobs import JOINT, LEVELS, channel_problem, outputs, some_profile
from tests.compressors.groups.test_find import Graph

NETS = [
    ("conv", "add", "cat"),
    ("depthwise", "gate", "conv"),
    ("shuffle", "halves", "add"),
    ("grouped", "cat", "conv"),
]


@pytest.mark.parametrize("steps", NETS)
def test_what_was_counted_is_there(tmp_path: Path, steps: tuple[str, ...]) -> None:
    model, x = Graph(list(steps), 1).eval(), torch.randn(32, 3, 6, 6)
    levels = (*LEVELS, "w8", "channels-0.50+w8")
    with channel_problem(model, x, tmp_path / "d", levels) as problem:
        assert problem.channels is not None
        tables = channel_tables(model, problem.channels)
        dense = sum(p.numel() for p in model.parameters())
        assert tables["params"].dense == dense
        stored = [*model.parameters(), *model.buffers()]
        assert tables["bits"].dense == sum(8 * v.numel() * v.element_size() for v in stored)
        smaller = Smaller(model, problem.channels)
        for seed in range(4):
            candidate, profile = some_profile(problem, seed)
            small = smaller(profile)
            found = find_layers(small, over(x))
            there = (
                sum(p.numel() for p in small.parameters()),
                sum(found.macs.values()) + found.base,
            )
            assert counts(model, problem.channels, profile) == there
            assert tables["params"].total(candidate) == pytest.approx(there[0])
            assert problem.full_space.total("flops", candidate) == pytest.approx(there[1])
            floats = all(lv.quantization is None for lv in profile.values())
            if floats:
                own = sum(8 * v.numel() * v.element_size() for v in small.state_dict().values())
                assert tables["bits"].total(candidate) == pytest.approx(own)


@pytest.mark.parametrize("steps", NETS)
def test_weights_make_up_for_channels_as_narrow_does(
    tmp_path: Path, steps: tuple[str, ...]
) -> None:
    model, x = Graph(list(steps), 2).eval(), torch.randn(64, 3, 6, 6)
    with channel_problem(model, x, tmp_path / "d") as problem:
        channels = problem.channels
        assert channels is not None
        own = list(channels.content.layers.values())
        readers = readers_of(model, channels.content.grouped, own, over(x), DAMPING)
        for seed in range(3):
            _, profile = some_profile(problem, seed)
            kept = channels.kept(profile)
            expected = outputs(without(model, channels.content.grouped, readers, kept), x)
            got = outputs(Smaller(model, channels)(profile), x)
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_the_dense_profile_is_the_dense_model(tmp_path: Path) -> None:
    model, x = Graph(["conv", "add"], 3).eval(), torch.randn(32, 3, 6, 6)
    with channel_problem(model, x, tmp_path / "d", JOINT) as problem:
        assert problem.channels is not None
        dense = dict.fromkeys(problem.levels(), DENSE)
        assert torch.equal(outputs(Smaller(model, problem.channels)(dense), x), outputs(model, x))


def test_quantized_weights_lie_on_their_grids_and_inputs_are_quantized(tmp_path: Path) -> None:
    model, x = Graph(["conv", "add", "conv"], 4).eval(), torch.randn(32, 3, 6, 6)
    levels = ("dense", "w4a8", "channels-0.50+w4a8", "channels-0.50+2:4")
    with channel_problem(model, x, tmp_path / "d", levels) as problem:
        assert problem.channels is not None
        smaller = Smaller(model, problem.channels)
        chosen = {name: parse_level(own[-2]) for name, own in problem.levels().items()}
        assert set(map(str, chosen.values())) >= {"channels-0.50+w4a8"}
        small, grids = smaller(chosen), smaller.grids(chosen)
        assert grids
        for name, grid in grids.items():
            layer = small.get_submodule(name)
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            rows = weight.detach().flatten(1)
            assert torch.equal(grid.scale * (grid.codes(rows) - grid.zero), rows), name
            hooks = [h for h in layer._forward_pre_hooks.values() if isinstance(h, InputQuantizer)]
            assert [hook.grid.bits for hook in hooks if hook.grid is not None] == [8]
        patterns = {name: parse_level(own[-1]) for name, own in problem.levels().items()}
        small, checked = smaller(patterns), 0
        for name in problem.channels.decided:
            _, level = problem.channels.level_of(name, patterns)
            if level.sparsity is None:
                continue
            weight = small.get_submodule(name).weight
            assert isinstance(weight, torch.Tensor)
            fours = weight.detach().movedim(1, -1).reshape(-1, 4)
            assert int((fours != 0).sum(1).max()) <= 2
            checked += 1
        assert checked


@pytest.mark.parametrize("mode", ["running", "batch", "recalibrate"])
@pytest.mark.parametrize("fitness", ["kl", "loss"])
def test_a_score_is_that_of_the_smaller_model(tmp_path: Path, mode: str, fitness: str) -> None:
    from apportion.compressors.corrections import retune_batchnorm
    from apportion.evaluators.scoring.batchnorm import batch_statistics

    model, x = Graph(["conv", "add", "cat"], 5).eval(), torch.randn(40, 3, 6, 6)
    with channel_problem(
        model, x, tmp_path / "d", batchnorm=mode, workload={"batch_size": 16}
    ) as problem:
        assert problem.channels is not None
        workload = problem.workload
        scorer = ChannelScorer(workload, problem.channels, fitness, mode)
        batches = list(workload.calibration.batches(16))
        assert len(batches) == 3
        for seed in range(3):
            candidate, profile = some_profile(problem, seed)
            small = Smaller(model, problem.channels)(profile)
            if mode == "recalibrate":
                retune_batchnorm(small, workload.full_pass(lambda: batches))
            total = 0.0
            with torch.no_grad():
                for batch in batches:
                    if mode == "batch":
                        with batch_statistics(small):
                            got = workload.task.forward(small, batch)
                    else:
                        got = workload.task.forward(small, batch)
                    dense = workload.task.reference(workload.task.forward(model, batch), batch)
                    values = (
                        workload.task.divergence(got, dense, batch)
                        if fitness == "kl"
                        else workload.task.loss(got, batch)
                    )
                    total += float(values.sum())
            assert scorer.score(candidate) == pytest.approx(total / 40, rel=1e-4, abs=1e-7)
            (pooled,) = problem.start_pool().evaluate([(candidate, 1.0)])
            if fitness == "kl":
                assert pooled.fitness == scorer.score(candidate)


def test_scoring_stops_when_the_bound_is_out_of_reach(tmp_path: Path) -> None:
    model, x = Graph(["conv", "conv"], 5).eval(), torch.randn(40, 3, 6, 6)
    with channel_problem(
        model, x, tmp_path / "d", batchnorm="running", workload={"batch_size": 8}
    ) as problem:
        assert problem.channels is not None
        candidate = tuple(len(own) - 1 for own in problem.levels().values())
        both = [ChannelScorer(problem.workload, problem.channels, "kl", "running") for _ in "12"]
        whole = both[0].score(candidate)
        assert 0 < whole < float("inf")
        assert both[1].score(candidate, bound=whole / 2) == float("inf")
        assert both[1].score(candidate, bound=whole) == whole


def test_tied_layers_stay_tied(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.inner = nn.Conv2d(8, 8, 3, padding=1)
            self.again = nn.Conv2d(8, 8, 3, padding=1)
            self.again.weight = self.inner.weight
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.again(self.inner(self.stem(x).relu()).relu()).relu()
            made: torch.Tensor = self.head(x).mean((2, 3))
            return made

    model, x = Twice().eval(), torch.randn(32, 3, 6, 6)
    with channel_problem(model, x, tmp_path / "d") as problem:
        assert problem.channels is not None
        profile = {name: parse_level(own[-1]) for name, own in problem.levels().items()}
        small = Smaller(model, problem.channels)(profile)
        assert getattr(small.again, "weight") is getattr(small.inner, "weight")  # noqa: B009
        assert counts(model, problem.channels, profile)[0] == sum(
            p.numel() for p in small.parameters()
        )
