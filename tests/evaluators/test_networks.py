"""The project's own networks: parameters and multiply-accumulates are the published ones, and half
of their channels can go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from apportion.evaluators.models.build import build_model
from apportion.evaluators.models.registry import MODELS
from tests.compressors.groups.masking import check

_PUBLISHED = {
    # Howard et al. 2017, table 8: 4.2 million parameters, 569 million multiply-accumulates
    "mobilenet_v1": (224, 28, 4_231_976, 568_740_352),
    # pjreddie.com/darknet/imagenet: 7.29 and 18.57 billion operations at 256 x 256
    "darknet19": (256, 19, 20_842_376, 3_645_374_464),
    "darknet53": (256, 53, 41_609_928, 9_285_115_904),
    # He et al. 2016, table 1: 3.8 and 7.6 billion multiply-accumulates
    "resnet50_caffe": (224, 54, 25_557_032, 3_857_973_248),
    "resnet101_caffe": (224, 105, 44_549_160, 7_570_194_432),
    # He et al. 2016, table 6: 0.85 and 1.7 million parameters
    "cifar_resnet56": (32, 56, 853_018, 125_485_696),
    "cifar_resnet110": (32, 110, 1_727_962, 252_887_680),
}


@pytest.mark.parametrize("name", _PUBLISHED)
def test_sizes_and_costs_are_the_published_ones(name: str) -> None:
    size, layers, parameters, macs = _PUBLISHED[name]
    with torch.device("meta"):
        model = build_on_meta(name)
        x = torch.zeros(1, 3, size, size)
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()) == layers
    assert sum(p.numel() for p in model.parameters()) == parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shape = model(x).shape
    assert shape == (1, 10 if name.startswith("cifar") else 1000)
    assert counter.get_total_flops() == 2 * macs


def build_on_meta(name: str) -> nn.Module:
    """Without the seconds that random weights take."""
    return MODELS[name]().eval()


def test_darknets_have_the_layers_of_their_files() -> None:
    """The values of the fields in darknet53.cfg and darknet19.cfg, in their order."""
    with torch.device("meta"):
        small, large = build_on_meta("darknet19"), build_on_meta("darknet53")
    filters = [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)]
    sizes = [m.kernel_size[0] for m in small.modules() if isinstance(m, nn.Conv2d)]
    assert filters == [
        *(32, 64, 128, 64, 128, 256, 128, 256, 512, 256, 512, 256, 512),
        *(1024, 512, 1024, 512, 1024, 1000),
    ]
    assert sizes == [3, 3, 3, 1, 3, 3, 1, 3, 3, 1, 3, 1, 3, 3, 1, 3, 1, 3, 1]
    strides = [m.stride[0] for m in large.modules() if isinstance(m, nn.Conv2d)]
    assert strides.count(2) == 5
    slopes = {m.negative_slope for m in large.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.1}
    assert sum("conv2.0.weight" in name for name in large.state_dict()) == 1 + 2 + 8 + 8 + 4


def test_caffes_resnet_halves_images_in_its_first_layers_and_takes_torchvisions_weights() -> None:
    model = build_model("resnet50_caffe")
    for stage, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2), ("layer4", 2)):
        block = model.get_submodule(f"{stage}.0")
        assert block.get_submodule("conv1").stride == (stride, stride)
        assert block.get_submodule("conv2").stride == (1, 1)
    model.load_state_dict(torchvision.models.resnet50().state_dict())


_LARGE = {"darknet53", "resnet101_caffe", "cifar_resnet110"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in _LARGE)) for n in _PUBLISHED]
)
def test_half_of_their_channels_can_go(name: str) -> None:
    """What is left gives what the masked model gives; its costs are what was counted."""
    torch.manual_seed(0)
    model = build_model(name)
    size = 32 if name.startswith("cifar") else 64
    x = torch.randn(2, 3, size, size)
    found = check(model, x, np.random.default_rng(0))
    layers = {layer for group in found.groups for layer in group.makers}
    every = {n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    last = [n for n in every if n.startswith(("classifier", "fc", "linear"))]
    assert every - layers == set(last), "every layer but the last loses channels"
