"""MobileNet-V1 at width 1 (Howard et al. 2017, "MobileNets", table 1), for 224 x 224 images."""

from __future__ import annotations

from torch import Tensor, nn

from apportion.evaluators.models.registry import register_model

_SEPARABLE = (  # outputs and stride of every pair of a depthwise and a 1 x 1 convolution
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),  # table 1 says 2, and 7 x 7 before and after it
)


def _conv(inputs: int, outputs: int, size: int, stride: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class MobileNetV1(nn.Module):
    """Input [N, 3, H, W], output [N, classes]. Names as torchvision's MobileNet-V2 has them:
    `features.0.0` is the first convolution, `features.I.0.0` the depthwise one of pair I,
    `features.I.1.0` its 1 x 1, each with its batch-norm beside (`.1`); `classifier`."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        parts: list[nn.Module] = [_conv(3, 32, 3, 2)]
        inputs = 32
        for outputs, stride in _SEPARABLE:
            depthwise = _conv(inputs, inputs, 3, stride, groups=inputs)
            parts.append(nn.Sequential(depthwise, _conv(inputs, outputs, 1, 1)))
            inputs = outputs
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return made


@register_model("mobilenet_v1")
def mobilenet_v1() -> nn.Module:
    return MobileNetV1()
