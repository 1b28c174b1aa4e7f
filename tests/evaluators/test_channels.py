"""Channels that are taken out of two layers at once leave the model's outputs as they were."""

import copy
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apportion.compressors.calibration import over
from apportion.compressors.kinds.find import find_layers
from apportion.evaluators.rewriting.channels import find_channel_groups
from apportion.evaluators.rewriting.reduced import ReducedLayer, reduce_layers

IMAGE, VECTOR = (3, 4, 7, 7), (3, 5, 6)

MODELS: dict[str, tuple[nn.Sequential, tuple[int, ...]]] = {
    "norm and padding": (
        nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 3, 3, padding=1),
        ),
        IMAGE,
    ),
    "bias": (
        nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.SiLU(), nn.Conv2d(6, 3, 3, stride=2, padding=2, dilation=2)
        ),
        IMAGE,
    ),
    "depthwise": (
        nn.Sequential(
            nn.Conv2d(4, 6, 1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU6(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU6(),
            nn.Conv2d(6, 3, 1),
        ),
        IMAGE,
    ),
    "one dimension": (
        nn.Sequential(
            nn.Conv1d(5, 6, 3), nn.BatchNorm1d(6), nn.Tanh(), nn.Conv1d(6, 4, 2, padding=1)
        ),
        VECTOR,
    ),
    "linear": (
        nn.Sequential(
            nn.Linear(6, 7), nn.GELU(), nn.Dropout(), nn.Linear(7, 4, bias=False), nn.Linear(4, 3)
        ),
        VECTOR,
    ),
}


def prepared(name: str, seed: int, share: float) -> tuple[nn.Sequential, Tensor]:
    """A copy of the model, random all over, with this share of its filters without weights; and
    inputs."""
    model, shape = MODELS[name]
    model, generator = copy.deepcopy(model).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
        for module in model:
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert module.running_var is not None
                module.running_var.abs_().add_(0.1)
            elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)) and module is not model[-1]:
                module.weight[torch.rand(len(module.weight), generator=generator) < share] = 0
    return model, torch.randn(shape, generator=generator)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(MODELS)), st.integers(0, 10_000), st.sampled_from([0.0, 0.4, 0.8, 1.0])
)
def test_outputs_stay(name: str, seed: int, share: float) -> None:
    model, x = prepared(name, seed, share)
    expected, before = model(x), sum(p.numel() for p in model.parameters())
    names = [layer.name for layer in find_layers(model, over(x)).layers][:-1]
    gone = any((~model.get_parameter(f"{n}.weight").flatten(1).any(1)).sum() > 1 for n in names)
    reduce_layers(model, names)
    assert not any(isinstance(module, ReducedLayer) for module in model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    if gone and name != "depthwise":  # whose channels stay where a constant meets its padding
        assert sum(p.numel() for p in model.parameters()) < before


def test_a_depthwise_layer_alone_shrinks_what_stands_before_it() -> None:
    model, x = prepared("depthwise", 0, 0.0)
    with torch.no_grad():
        model.get_parameter("3.weight")[:4] = 0
    expected = model(x)
    reduce_layers(model, ["3"])
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    left = len(model.get_parameter("0.weight"))
    assert left <= 3
    assert model[3].groups == len(model.get_parameter("3.weight")) == left


class Branch(nn.Module):
    """A layer whose outputs two others take, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = (
            nn.Conv2d(4, 6, 1),
            nn.Conv2d(6, 6, 1),
            nn.Conv2d(6, 6, 1),
        )
        self.twice = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        out: Tensor = self.twice(torch.relu(self.twice(self.left(y) + self.right(y))))
        return out


class Untraceable(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > -torch.inf else x


@pytest.mark.parametrize("kind", [Branch, Untraceable])
def test_what_others_see_is_filled_in(kind: type[nn.Module]) -> None:
    model = kind().eval()
    names = ["stem", "left", "right", "twice"]
    with torch.no_grad():
        for name in names:
            model.get_parameter(f"{name}.weight")[[1, 4]] = 0
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0))
    expected = model(x)
    assert find_channel_groups(model, names, ()) == []
    reduce_layers(model, names)
    assert all(isinstance(model.get_submodule(name), ReducedLayer) for name in names)
    torch.testing.assert_close(model(x), expected)


def test_fixed_layers_keep_their_weights() -> None:
    model, _ = prepared("norm and padding", 0, 0.5)
    assert [group.layer for group in find_channel_groups(model, ["0"], [])] == ["0"]
    assert find_channel_groups(model, ["0"], ["3"]) == []
    assert find_channel_groups(model, ["3"], []) == []  # nothing follows


def test_a_projection_that_attention_does_not_call_stays() -> None:
    attention = nn.MultiheadAttention(8, 2)
    model = nn.Sequential(OrderedDict(attention=attention))
    reduce_layers(model, ["attention.out_proj"])
    assert not isinstance(attention.out_proj, ReducedLayer)


def test_a_weight_that_is_used_by_itself_too_keeps_its_inputs() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
            self.b = nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).relu()) + nn.functional.conv2d(self.c(x), self.b.weight)

    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        model.a.weight[:3] = 0
        expected = model(x)
        reduce_layers(model, ["a"])
        torch.testing.assert_close(model(x), expected)
    assert isinstance(model.a, ReducedLayer)
