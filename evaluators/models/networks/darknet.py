"""Darknet-19 (Redmon & Farhadi 2016, "YOLO9000", table 6) and Darknet-53 (2018, "YOLOv3", table 1)
as classifiers of ImageNet, layer by layer as darknet19.cfg and darknet53.cfg have them."""

from __future__ import annotations

from torch import Tensor, nn

from apportion.evaluators.models.registry import register_model

_POOL = 0
_NINETEEN = (  # outputs of convolutions, 3 x 3 where they widen, else 1 x 1; 2 x 2 pooling
    *(32, _POOL, 64, _POOL),
    *(128, 64, 128, _POOL),
    *(256, 128, 256, _POOL),
    *(512, 256, 512, 256, 512, _POOL),
    *(1024, 512, 1024, 512, 1024),
)
_FIFTY_THREE = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))  # outputs and blocks of stages


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1, inplace=True),
    )


class Darknet19(nn.Module):
    """Input [N, 3, H, W], output [N, classes]. `features.I.0` is a convolution, `features.I.1` its
    batch-norm; `classifier`, a 1 x 1 convolution with a bias before the mean over positions."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        inputs = 3
        for outputs in _NINETEEN:
            if outputs == _POOL:
                parts.append(nn.MaxPool2d(2))
                continue
            parts.append(_conv(inputs, outputs, 3 if outputs > inputs else 1))
            inputs = outputs
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Conv2d(inputs, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.classifier(self.features(x)).mean((2, 3))
        return made


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(width, width // 2, 1), _conv(width // 2, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.conv2(self.conv1(x))
        return made


class Darknet53(nn.Module):
    """Input [N, 3, H, W], output [N, classes]. `features.0.0` is the first convolution,
    `features.I.0.0` the one that begins stage I, `features.I.B.conv1.0` and `.conv2.0` those of its
    block B, each with its batch-norm beside (`.1`); `classifier`."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        stages: list[nn.Module] = [_conv(3, 32, 3)]
        inputs = 32
        for width, blocks in _FIFTY_THREE:
            residual = (_Residual(width) for _ in range(blocks))
            stages.append(nn.Sequential(_conv(inputs, width, 3, 2), *residual))
            inputs = width
        self.features = nn.Sequential(*stages)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return made


@register_model("darknet19")
def darknet19() -> nn.Module:
    return Darknet19()


@register_model("darknet53")
def darknet53() -> nn.Module:
    return Darknet53()
