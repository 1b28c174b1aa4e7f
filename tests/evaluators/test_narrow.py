"""Smaller models: loaded again by the user's own class, and refused where they cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from apportion.compressors.calibration import over
from apportion.compressors.errors import ModelError
from apportion.compressors.groups.ladder import channel_ladder
from apportion.compressors.groups.readers import first_of, readers_of
from apportion.evaluators.models.build import build_model
from apportion.evaluators.models.resizing import resize
from apportion.evaluators.rewriting.compensate import without
from apportion.evaluators.rewriting.narrow import changed_shapes, narrowed
from apportion.evaluators.rewriting.reconstruct import reconstruct
from tests.compressors.groups.masking import grouped, outputs, some_of
from tests.compressors.groups.test_find import Graph

STEPS = ["conv", "add", "depthwise", "cat", "gate"]


def test_the_users_class_with_other_shapes_and_the_state_dict_is_the_smaller_model() -> None:
    model, x = Graph(STEPS, 0).eval(), torch.randn(2, 3, 6, 6)
    _, made = grouped(model, x)
    small = narrowed(model, made.groups, some_of(made.groups, np.random.default_rng(0)))
    again = Graph(STEPS, 1).eval()
    resize(again, changed_shapes(model, small))
    again.load_state_dict(small.state_dict())
    assert torch.equal(outputs(again, x), outputs(small, x))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    loss = again(x).square().sum()
    loss.backward()  # it trains
    assert all(p.grad is not None and p.grad.shape == p.shape for p in again.parameters())


def test_nothing_removed_is_the_model_itself() -> None:
    model, x = Graph(STEPS, 0).eval(), torch.randn(2, 3, 6, 6)
    _, made = grouped(model, x)
    whole = {group.name: np.ones(group.size, bool) for group in made.groups}
    same = narrowed(model, made.groups, whole)
    assert changed_shapes(model, same) == {}
    assert torch.equal(outputs(same, x), outputs(model, x))


def test_names_and_modules_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"no parameter or buffer 'two\.weight'"):
        resize(nn.Sequential(nn.Linear(2, 3)), {"two.weight": (1, 2)})
    attention = nn.MultiheadAttention(4, 2)
    with pytest.raises(ModelError, match="MultiheadAttention cannot be made smaller"):
        resize(nn.ModuleDict({"a": attention}), {"a.in_proj_weight": (6, 4)})


def test_shared_weights_stay_shared() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.one = nn.Linear(4, 6), nn.Linear(6, 6)
            self.two = self.one
            self.end = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.end(self.two(self.one(self.start(x)).relu()))
            return out

    model, x = Twice().eval(), torch.randn(3, 4)
    _, made = grouped(model, x)
    (group,) = made.groups
    kept = {group.name: np.arange(group.size) % 2 == 0}
    small = narrowed(model, made.groups, kept)
    assert small.get_submodule("one") is small.get_submodule("two")
    assert outputs(small, x).shape == (3, 2)


def test_layers_that_make_up_for_channels_are_nearer_to_the_dense_model() -> None:
    """On images, half of all channels: nothing made up for, then by the elimination, then layer by
    layer."""
    torch.manual_seed(0)
    model = build_model("digits_resnet").eval()
    x = torch.randn(64, 1, 8, 8)
    found, made = grouped(model, x)
    readers = readers_of(model, made, found.layers, over(x), 1e-3)
    orders = {g.name: channel_ladder(g, readers).order for g in made.groups}
    sizes = {g.name: max(1, 3 * g.size // 4) for g in made.groups}
    kept = first_of(orders, sizes)
    plain = without(model, made, {}, kept)
    better = without(model, made, readers, kept)
    best = without(model, made, readers, kept)
    reconstruct(best, model, made, found.layers, kept, over(x))
    dense = outputs(model, x)
    errors = [float((outputs(m, x) - dense).square().mean()) for m in (plain, better, best)]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.8 * errors[1]
