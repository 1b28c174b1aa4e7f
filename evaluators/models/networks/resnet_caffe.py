"""ResNet-50, 101 and 152 as He et al. (2016, table 1) published them for Caffe: a bottleneck that
halves the image does so in its first 1 x 1 convolution. torchvision does so in the 3 x 3 one
("V1.5"), for 6 % more multiply-accumulates. Names and shapes of weights are torchvision's."""

from __future__ import annotations

from typing import Any

from torch import nn

from apportion.evaluators.models.registry import register_model


def _stride_first(model: nn.Module) -> nn.Module:
    from torchvision.models.resnet import Bottleneck  # torchvision takes a second to import

    blocks: list[Any] = [module for module in model.modules() if isinstance(module, Bottleneck)]
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return model


@register_model("resnet50_caffe")
def resnet50_caffe() -> nn.Module:
    from torchvision.models import resnet50

    return _stride_first(resnet50())


@register_model("resnet101_caffe")
def resnet101_caffe() -> nn.Module:
    from torchvision.models import resnet101

    return _stride_first(resnet101())


@register_model("resnet152_caffe")
def resnet152_caffe() -> nn.Module:
    from torchvision.models import resnet152

    return _stride_first(resnet152())
