"""Databases of channel levels: what is recorded is what is measured, stopped builds go on, and
altered files are noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.compressors.errors import (
    DatabaseCorruptError,
    DatabaseMismatchError,
    UnknownNameError,
)
from apportion.compressors.groups.find import ChannelGroup
from apportion.compressors.levels import DENSE, parse_level
from apportion.db.channels.database import ChannelDatabase
from apportion.db.channels.sizes import SizeRules
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.rewriting.smaller import Smaller
from tests.channel_jobs import JOINT, LEVELS, channel_problem
from tests.compressors.groups.test_find import Graph


def net(*steps: str) -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return Graph(list(steps), 3).eval(), torch.randn(48, 3, 6, 6, generator=generator)


def seen(model: nn.Module, x: Tensor, names: list[str]) -> dict[str, Tensor]:
    """What layers put out."""
    made: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, out, name=name: made.update({name: out})
        )
        for name in names
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return made


@pytest.mark.parametrize("levels", [LEVELS, JOINT])
def test_recorded_errors_are_what_layers_lose(tmp_path: Path, levels: tuple[str, ...]) -> None:
    """Of a chain, in which a group's readers get what the dense model's get, but for the channels
    that are gone."""
    model, x = net("conv", "conv", "depthwise", "conv")
    with channel_problem(model, x, tmp_path / "d", levels) as problem:
        channels = problem.channels
        assert channels is not None
        smaller = Smaller(model, channels)
        dense = dict.fromkeys(channels.decisions, DENSE)
        checked = 0
        for name, decision in channels.decisions.items():
            groups = [g for g in channels.content.grouped.groups if g.name == decision.group]
            names = list(groups[0].readers) if groups else [decision.layer or ""]
            before = seen(model, x, names)
            for level, error in zip(decision.levels, decision.errors, strict=True):
                small = smaller({**dense, name: parse_level(level)})
                after = seen(small, x, names)
                expected = sum(lost(before[n], after[n], bool(groups)) for n in names)
                assert error == pytest.approx(expected, rel=1e-3, abs=1e-5), (name, level)
                checked += level != "dense"
        assert checked >= 6


def lost(dense: Tensor, small: Tensor, about_mean: bool) -> float:
    """The change of a layer's outputs, as a share of theirs; about its mean, where a bias or
    batch-norm makes up for that."""
    over = [d for d in range(dense.dim()) if d != 1]
    both = ((small - dense).double(), dense.double())
    change, whole = (own - about_mean * own.mean(over, keepdim=True) for own in both)
    return float(change.square().sum() / whole.square().sum())


def test_what_is_opened_again_is_what_was_built(tmp_path: Path) -> None:
    model, x = net("conv", "cat", "conv")
    with channel_problem(model, x, tmp_path / "d", JOINT) as problem:
        built = problem.channels
    again = ChannelDatabase(LayerDatabase.open(tmp_path / "d"))
    assert built is not None
    assert again.content.shared("parts.2.0")  # reads what was there, and what was added to it
    assert again.levels() == built.levels()
    for one, other in zip(again.content.grouped.groups, built.content.grouped.groups, strict=True):
        assert (one.name, one.size) == (other.name, other.size)
        for table, same in ((one.makers, other.makers), (one.readers, other.readers)):
            assert {n: t.tolist() for n, t in table.items()} == {
                n: t.tolist() for n, t in same.items()
            }
    with channel_problem(model, x, tmp_path / "e", JOINT) as problem:
        assert problem.database.fingerprint == again.fingerprint


def test_a_stopped_build_goes_on(tmp_path: Path) -> None:
    model, x = net("conv", "conv")
    with channel_problem(model, x, tmp_path / "whole", JOINT) as problem:
        whole = problem.database.fingerprint
    stops = 0

    class StopError(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if what == "compress groups" and done == stops + 1 < total:
            raise StopError

    while True:
        try:
            with channel_problem(model, x, tmp_path / "d", JOINT, progress=stop) as problem:
                assert problem.database.fingerprint == whole
                break
        except StopError:
            assert not (tmp_path / "d" / "manifest.json").exists()
            stops += 1
    assert stops >= 1


def test_an_altered_file_is_noticed(tmp_path: Path) -> None:
    model, x = net("conv")
    channel_problem(model, x, tmp_path / "d").close()
    file = tmp_path / "d" / "channels.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(DatabaseCorruptError, match=r"channels.safetensors: .*it was altered"):
        channel_problem(model, x, tmp_path / "d")


@pytest.mark.parametrize(
    "change", [{"multiple": 4}, {"least": 3}, {"criterion": "l1"}, {"skip": ["stem"]}]
)
def test_a_database_of_other_rules_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    model, x = net("conv")
    channel_problem(model, x, tmp_path / "d").close()
    options = {"channels": {"multiple": 2, **change}}
    with pytest.raises(DatabaseMismatchError, match="channel_rules"):
        channel_problem(model, x, tmp_path / "d", database_options=options)


def group(size: int, *makers: str) -> ChannelGroup:
    return ChannelGroup("g", size, dict.fromkeys(makers or ("a.conv",)), {}, ())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "multiple", "least", "level", "kept"),
    [
        (64, 8, 1, "channels-0.50", 32),
        (64, 8, 1, "channels-0.49", 40),  # rounded up
        (64, 8, 1, "channels-0.99", 8),
        (64, 1, 1, "channels-0.99", 1),
        (64, 8, 20, "channels-0.99", 24),
        (64, 8, 100, "channels-0.50", 64),
        (20, 8, 1, "channels-0.10", 20),  # 24 is more than there are
        (20, 8, 1, "channels-0.50", 16),
        (10, 1, 1, "channels-0.30", 7),
        (64, 8, 1, "w8", 64),
    ],
)
def test_how_many_channels_stay(
    size: int, multiple: int, least: int, level: str, kept: int
) -> None:
    rules = SizeRules({"*": multiple}, least)
    assert rules.kept(group(size), parse_level(level)) == kept


def test_the_last_pattern_holds() -> None:
    rules = SizeRules({"*": 8, "a.*": 2}, skip=("b.*",))
    assert rules.kept(group(12), parse_level("channels-0.50")) == 6
    assert rules.kept(group(12, "c.conv"), parse_level("channels-0.50")) == 8
    assert rules.skips(group(12, "a.conv", "b.conv"))
    assert not rules.skips(group(12, "a.conv"))
    with pytest.raises(UnknownNameError, match="b"):
        rules.check([group(12)])
