"""Channel groups: what must go together goes together, and what is left computes the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from apportion.evaluators.rewriting.masked import masked
from apportion.evaluators.rewriting.narrow import narrowed
from tests.compressors.groups.masking import check, grouped, outputs, some_of


class Graph(nn.Module):
    """A random network: each step takes what is there, and one thing more. Parameters are random,
    batch-norm's statistics too."""

    STEPS = (
        *("conv", "depthwise", "multiplied", "grouped", "transposed", "add", "cat", "gate"),
        *("shuffle", "halves", "pool", "heads"),
    )

    def __init__(self, steps: list[str], seed: int) -> None:
        super().__init__()
        self.steps, self.parts = steps, nn.ModuleList()
        width = 8
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        for step in steps:
            part: nn.Module = nn.Identity()
            if step == "conv":
                part = nn.Sequential(
                    nn.Conv2d(width, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()
                )
                width = 12
            elif step == "depthwise":
                part = nn.Sequential(
                    nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Hardswish()
                )
            elif step == "grouped":
                part = nn.Conv2d(width, 8, 3, padding=1, groups=2)
                width = 8
            elif step == "multiplied":
                part = nn.Conv2d(width, 2 * width, 1, groups=width)
                width *= 2
            elif step == "transposed":
                part = nn.ConvTranspose2d(width, 8, 3, padding=1, groups=2)
                width = 8
            elif step == "heads":
                part = nn.ModuleList([nn.Linear(width, 24), nn.Linear(8, width)])
            elif step == "add":
                part = nn.Sequential(nn.Conv2d(width, 6, 1), nn.ReLU(), nn.Conv2d(6, width, 1))
            elif step == "cat":
                part = nn.Conv2d(width, 4, 3, padding=1)
                width += 4
            elif step == "gate":
                part = nn.Sequential(
                    nn.AdaptiveAvgPool2d(1),
                    nn.Conv2d(width, 4, 1),
                    nn.SiLU(),
                    nn.Conv2d(4, width, 1),
                    nn.Sigmoid(),
                )
            elif step == "halves":
                part = nn.Conv2d(width // 2, width // 2, 1)
            self.parts.append(part)
        self.head = nn.Linear(width * 4, 5)
        generator = torch.Generator().manual_seed(seed)
        for value in [*self.parameters(), *self.buffers()]:
            if value.is_floating_point():
                value.data = torch.rand(value.shape, generator=generator) - 0.4
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                module.running_var += 1

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step, part in zip(self.steps, self.parts, strict=True):
            if step == "add":
                x = F.relu(x + part(x))
            elif step == "cat":
                x = torch.cat([x, part(x)], 1)
            elif step == "gate":
                x = x * part(x)
            elif step == "heads":
                x = x + self._attended(x, *part.children())
            elif step == "shuffle":
                n, c, h, w = x.shape
                x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            elif step == "halves":
                one, other = x.chunk(2, dim=1)
                x = torch.cat([one, part(other)], 1)
            elif step == "pool":
                x = F.max_pool2d(x, 3, stride=1, padding=1)
            else:
                x = part(x)
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))

    @staticmethod
    def _attended(x: Tensor, qkv: nn.Module, out: nn.Module) -> Tensor:
        """By four heads of two channels."""
        n, c, h, w = x.shape
        q, k, v = (
            each.reshape(n, h * w, -1, 2).transpose(1, 2)
            for each in qkv(x.flatten(2).mT).chunk(3, -1)
        )
        y = (q @ k.mT / 2).softmax(-1) @ v
        made: Tensor = out(y.transpose(1, 2).reshape(n, h * w, -1))
        return made.mT.reshape(n, c, h, w)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from(Graph.STEPS), min_size=1, max_size=5),
    st.integers(0, 1000),
    st.sampled_from([0.25, 0.5, 0.75]),
)
def test_what_is_left_of_a_random_network_computes_the_same(
    steps: list[str], seed: int, share: float
) -> None:
    model = Graph(steps, seed).eval()
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    made = check(model, x, np.random.default_rng(seed), share)
    assert made.groups
    assert made.kept["head"] == "the model's outputs"


def test_a_residual_stream_is_one_group() -> None:
    made = check(Graph(["add", "add"], 0).eval(), torch.randn(2, 3, 6, 6), np.random.default_rng(0))
    stream, *inner = made.groups
    assert stream.size == 8
    assert set(stream.makers) == {"stem", "parts.0.2", "parts.1.2"}
    assert set(stream.readers) == {"parts.0.0", "parts.1.0", "head"}
    assert [group.size for group in inner] == [6, 6]


class Unknown(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        if self.how == "layer_norm":
            x = self.norm(x)
        elif self.how == "softmax":
            x = x.softmax(-1)
        elif self.how == "mean":
            x = x - x.mean(-1, keepdim=True)
        elif self.how == "sort":
            x = x.sort(-1).values
        elif self.how == "slice":
            x = torch.cat([x[:, 3:], x[:, :3]], -1)
        elif self.how == "padded":
            x = x + F.pad(x[:, :4].detach() * 0, (0, 4))
        elif self.how == "constant":
            x = x * torch.arange(1.0, 9.0)
        out: Tensor = self.two(x)
        return out


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("layer_norm", "native_layer_norm"),
        ("softmax", "_softmax takes several"),
        ("mean", "mean takes several"),
        ("sort", "sort is not known"),
        ("slice", "slice cuts them"),
        ("padded", "slice cuts them"),
        ("constant", "joins them with what is in no channel"),
    ],
)
def test_what_would_compute_something_else_stays_with_the_reason(how: str, reason: str) -> None:
    _, made = grouped(Unknown(how).eval(), torch.randn(2, 6))
    assert not made.groups
    assert reason in made.kept["one"]


def test_gates_of_an_mlp_go_together() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 6)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.down(F.silu(self.gate(x)) * self.up(x))
            return out

    made = check(Gated().eval(), torch.randn(2, 6), np.random.default_rng(0))
    (group,) = made.groups
    assert set(group.makers) == {"gate", "up"}
    assert set(group.readers) == {"down"}


def test_a_small_llama_loses_heads_and_the_width_of_its_mlps() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    batch = {"input_ids": torch.randint(0, 50, (1, 7))}
    found, made = grouped(model, batch)
    assert [group.size for group in made.groups] == [2, 48, 2, 48]
    kept = some_of(made.groups, np.random.default_rng(0))
    small = narrowed(model, made.groups, kept)
    expected = outputs(masked(model, found.layers, made.groups, kept), batch)
    torch.testing.assert_close(outputs(small, batch), expected, rtol=1e-4, atol=1e-6)
    assert small.get_submodule("model.layers.0.mlp.down_proj").in_features == 24


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "vgg11_bn", "alexnet"),
        *("densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "mnasnet0_5"),
        *("regnet_x_400mf", "regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_0", "googlenet"),
        *("inception_v3", "convnext_tiny", "vit_b_16", "swin_t"),
    ],
)
def test_torchvisions_models_at_half_their_channels(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    more = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, **more).eval()
    if name == "vit_b_16":
        nn.init.normal_(model.heads.head.weight)
    side = 299 if name == "inception_v3" else 224
    own = name == "swin_t"  # whose code names its heads
    made = check(model, torch.randn(1, 3, side, side), np.random.default_rng(0), tried=own)
    assert made.groups
