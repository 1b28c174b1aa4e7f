"""Real architectures, with random weights: what is found of them, and what their products cost."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from apportion.compressors.calibration import FullPass
from apportion.compressors.kinds.find import find_layers
from apportion.compressors.kinds.uses import Found

_SMALL = {
    "alexnet": 64,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "googlenet": 64,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 64,
    "vgg11_bn": 32,
    "wide_resnet50_2": 32,
    "convnext_tiny": 32,
    "swin_t": 64,
    "swin_v2_t": 64,
}
_LARGE = {"vit_b_16": 224, "inception_v3": 96, "maxvit_t": 224}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # which takes most of a minute
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model.eval().requires_grad_(False)


def counted(model: nn.Module, x: Tensor) -> int:
    """By torch, which needs telling of attention on CPUs, and cannot see into its fast path."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def formula(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counter = FlopCounterMode(display=False, custom_mapping={attention: formula})
        with torch.no_grad(), counter:
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("name", "size"),
    [*_SMALL.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in _LARGE.items())],
)
def test_products_cost_what_torch_counts(name: str, size: int) -> None:
    """Per sample; what does not depend on the data is computed once for any number of samples."""
    model, x = made(name), torch.randn(2, 3, size, size)
    found = find_layers(model, FullPass(lambda: [x]))
    assert sum(found.macs.values()) + found.base == counted(model, x[:1])
    attends = name in ("swin_t", "swin_v2_t", "vit_b_16", "maxvit_t")
    assert (found.base > 0) == attends


def share_found(model: nn.Module, found: Found) -> float:
    """Of the weights in matrices that the model uses when it is run."""
    unused = {n for n, why in found.dense.items() if why.startswith("never used")}
    matrices = {n: p.numel() for n, p in model.named_parameters() if p.dim() > 1}
    used = sum(count for n, count in matrices.items() if n not in unused)
    return sum(layer.rows * layer.columns for layer in found.layers) / used


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("convnext_tiny", 32),
        ("googlenet", 64),
        ("swin_t", 64),
        pytest.param("vit_b_16", 224, marks=pytest.mark.slow),
    ],
)
def test_nearly_all_weights_are_found(
    name: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = made(name), torch.randn(2, 3, size, size)
    with caplog.at_level(logging.WARNING):
        found = find_layers(model, FullPass(lambda: [x]))
    assert share_found(model, found) >= 0.95
    assert len({layer.name for layer in found.layers}) == len(found.layers)
    heads = {n for n, why in found.dense.items() if why.startswith("never used")}
    assert heads == {n for n, p in model.named_parameters() if "aux" in n and p.dim() > 1}
    assert bool(heads) == (len(caplog.records) == 1)
