"""Heads of attentions: as one channel each, in the models that users bring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import Linear
from torch.nn import functional as F

from apportion.compressors.calibration import over
from apportion.compressors.groups.find import HEADS, Grouped
from apportion.compressors.kinds.find import find_layers
from apportion.evaluators.costs.channels.counts import channel_costs
from apportion.evaluators.rewriting.masked import masked, working
from apportion.evaluators.rewriting.narrow import changed_shapes, narrowed, resize
from tests.compressors.groups.masking import grouped, outputs, some_of

TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50,
        "num_attention_heads": 4}  # fmt: skip
IDS = {"input_ids": torch.arange(14).reshape(2, 7)}
IMAGES = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16).sin()}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 1], "window_size": 4,
        "num_heads": [2, 4]}  # fmt: skip
HF: dict[str, tuple[str, dict[str, Any], dict[str, Tensor], int, int]] = {
    "llama": ("LlamaForCausalLM", {**TEXT, "num_key_value_heads": 2}, IDS, 2, 2),
    "llama, eager": (
        "LlamaForCausalLM",
        {**TEXT, "num_key_value_heads": 2, "attn_implementation": "eager"},
        IDS,
        2,
        2,
    ),
    "qwen 3": ("Qwen3ForCausalLM", {**TEXT, "num_key_value_heads": 2, "head_dim": 8}, IDS, 2, 2),
    "bert": ("BertForSequenceClassification", TEXT, IDS, 4, 2),
    "vit": (
        "ViTForImageClassification",
        {**TEXT, "image_size": 16, "patch_size": 4},
        IMAGES,
        4,
        2,
    ),
    "gpt 2": (
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "bos_token_id": 0,
         "eos_token_id": 0},
        IDS,
        4,
        2,
    ),
    "swin": ("SwinForImageClassification", SWIN, IMAGES, 2, 3),
}  # fmt: skip


def heads_of(made: Grouped) -> list[int]:
    return [group.size for group in made.groups if group.unit == HEADS]


def built(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    kind, options, *_ = HF[name]
    given = dict(options)
    attention = given.pop("attn_implementation", "sdpa")
    own = getattr(transformers, kind)
    torch.manual_seed(0)
    config = own.config_class(**given, attn_implementation=attention)
    model: nn.Module = own(config).eval()
    for value in model.parameters():  # biases of zero would hide what happens to them
        nn.init.normal_(value, std=0.1)
    return model


@pytest.mark.parametrize("name", HF)
def test_heads_go_from_models_of_transformers(name: str) -> None:
    _, _, batch, size, count = HF[name]
    model = built(name)
    found, made = grouped(model, batch)
    made = working(model, made, found.layers, over(batch), batch)
    heads = heads_of(made)
    assert heads[0] == size
    assert len(heads) == count
    kept = some_of(made.groups, np.random.default_rng(0))
    small = narrowed(model, made.groups, kept)
    expected = outputs(masked(model, found.layers, made.groups, kept), batch)
    torch.testing.assert_close(outputs(small, batch), expected, rtol=1e-4, atol=1e-5)
    costs = channel_costs(model, found, made.groups)
    counts = {group.name: int(kept[group.name].sum()) for group in made.groups}
    assert costs.total("params", counts) == sum(p.numel() for p in small.parameters())
    left = find_layers(small, over(batch))
    assert costs.total("flops", counts) == sum(left.macs.values()) + left.base
    again = built(name)
    resize(again, changed_shapes(model, small))
    again.load_state_dict(small.state_dict())
    torch.testing.assert_close(outputs(again, batch), outputs(small, batch))


def test_a_llama_whose_heads_are_gone_writes_on_with_its_cache() -> None:
    model = built("llama")
    found, made = grouped(model, IDS)
    kept = some_of(made.groups, np.random.default_rng(0))
    small: Any = narrowed(model, made.groups, kept)
    whole: Any = masked(model, found.layers, made.groups, kept)
    texts = [m.generate(**IDS, max_new_tokens=5, do_sample=False) for m in (small, whole)]
    assert texts[0].tolist() == texts[1].tolist()
    cache = small(**IDS, use_cache=True).past_key_values
    assert cache.layers[0].keys.shape[1] == 1


def test_a_key_head_goes_with_all_query_heads_that_share_it() -> None:
    _, made = grouped(built("llama"), IDS)
    first = made.groups[0]
    assert (first.unit, first.size) == (HEADS, 2)
    at = "model.layers.0.self_attn"
    assert first.makers[f"{at}.q_proj"].tolist() == [0] * 16 + [1] * 16
    for name in ("k_proj", "v_proj"):
        assert first.makers[f"{at}.{name}"].tolist() == [0] * 8 + [1] * 8
    assert first.readers[f"{at}.o_proj"][0].tolist() == [0] * 16 + [1] * 16


class Attention(nn.Module):
    """`how` it is written."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.num_heads, self.head_dim = how, 4, 6
        self.qkv, self.out = Linear(10, 72), Linear(24, 10)
        self.norm, self.bias = nn.LayerNorm(6), nn.Parameter(torch.randn(4, 5, 5))
        self.register_buffer("slopes", torch.rand(4, 1, 1))
        self.register_buffer("angles", torch.rand(5, 3), persistent=False)

    def _turned(self, x: Tensor) -> Tensor:
        """Rotary embedding of neighbours."""
        even, odd = x[..., ::2], x[..., 1::2]
        c, s = self.get_buffer("angles").cos(), self.get_buffer("angles").sin()
        return torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        heads = 4 if self.how == "named" else self.num_heads
        qkv = self.qkv(x).reshape(b, n, 3, heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mask: Tensor | None = None
        if self.how == "normed":
            q, k = self.norm(q), F.normalize(k, dim=-1)
        elif self.how == "turned":
            q, k = self._turned(q), self._turned(k)
        elif self.how == "biased":
            mask = self.bias[None]
        elif self.how == "masked":
            mask = torch.rand(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
        if self.how in ("sloped", "across", "over heads"):
            scores = q @ k.mT * 0.4 + self.get_buffer("slopes")
            weights = scores.softmax(1 if self.how == "over heads" else -1)
            if self.how == "across":
                weights = weights - weights.mean(1, keepdim=True)
            y = weights @ v
        elif self.how == "by width":
            y = F.scaled_dot_product_attention(q, k, v * v.shape[1])
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask)
        made: Tensor = self.out(y.transpose(1, 2).reshape(b, n, -1))
        return made


@pytest.mark.parametrize(
    ("how", "heads"),
    [
        ("plain", 4),
        ("normed", 4),
        ("turned", 4),
        ("biased", 4),
        ("sloped", 4),
        ("masked", 0),
        ("across", 0),
        ("over heads", 0),
        ("named", 0),
        ("by width", 0),
    ],
)
def test_what_is_left_of_an_attention_computes_the_same(how: str, heads: int) -> None:
    torch.manual_seed(0)
    model, x = Attention(how).eval(), torch.randn(2, 5, 10)
    found, made = grouped(model, x)
    made = working(model, made, found.layers, over(x), x)
    assert heads_of(made) == ([heads] if heads else [])
    if not heads:
        assert made.kept["qkv"]
        return
    kept = some_of(made.groups, np.random.default_rng(0))
    small: Any = narrowed(model, made.groups, kept)
    assert small.num_heads == 2
    expected = outputs(masked(model, found.layers, made.groups, kept), x)
    torch.testing.assert_close(outputs(small, x), expected, rtol=1e-4, atol=1e-5)


class Block(nn.Module):
    """An attention and an MLP in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = 2, Linear(6, 24), Linear(8, 6)
        self.fc1, self.fc2 = Linear(6, 16), Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        made: Tensor = x + self.fc2(self.fc1(x).relu())
        return made


def test_an_mlp_beside_an_attention_changes_no_number_of_heads() -> None:
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(2, 5, 6)
    found, made = grouped(model, x)
    made = working(model, made, found.layers, over(x), x)
    assert [(group.size, group.unit) for group in made.groups] == [(2, HEADS), (16, "channels")]
    kept = {group.name: np.arange(group.size) < group.size // 2 for group in made.groups}
    for names, heads in ((["fc1"], 2), (["qkv"], 1), (["qkv", "fc1"], 1)):
        small: Any = narrowed(model, made.groups, {name: kept[name] for name in names})
        assert small.num_heads == heads
        assert outputs(small, x).shape == x.shape


REASONS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "masked": (lambda: Attention("masked"), "qkv", "a mask has numbers of its own"),
    "whole": (
        lambda: nn.Sequential(Linear(10, 8), nn.TransformerEncoderLayer(8, 2, 6, batch_first=True)),
        "0",
        "self_attn.in_proj_weight is used as a whole",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_heads_that_stay_say_why(name: str) -> None:
    make, layer, reason = REASONS[name]
    _, made = grouped(make().eval(), torch.randn(2, 5, 10))
    assert not heads_of(made)
    whys = {why for own, why in made.kept.items() if own.startswith(layer)}
    assert any(reason in why for why in whys), made.kept


def test_widths_behind_layer_norms_say_so() -> None:
    for name in ("bert", "vit", "gpt 2", "swin"):
        _, made = grouped(built(name), HF[name][2])
        streams = {why for own, why in made.kept.items() if own.rpartition(".")[2] != "classifier"}
        assert streams == {"native_layer_norm is over all of them, and would change"}, name
