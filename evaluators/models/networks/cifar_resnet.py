"""Residual networks for small images (He et al. 2016, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from apportion.evaluators.models.registry import register_model


class _Block(nn.Module):
    """Two 3x3 convolutions around an identity shortcut that subsamples and zero-pads (He et al.
    2016, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self._stride, self._padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self._stride > 1 or self._padding:
            x = F.pad(
                x[:, :, :: self._stride, :: self._stride],
                (0, 0, 0, 0, self._padding, self._padding),
            )
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """ResNet-(6n+2) for small images (He et al. 2016, section 4.2): input [N, channels, H, W],
    output [N, classes]."""

    def __init__(
        self,
        blocks: int,
        widths: tuple[int, int, int] = (16, 32, 64),
        channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(blocks, widths[0], widths[0], 1)
        self.layer2 = self._stage(blocks, widths[0], widths[1], 2)
        self.layer3 = self._stage(blocks, widths[1], widths[2], 2)
        self.linear = nn.Linear(widths[2], classes)

    @staticmethod
    def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        first = _Block(inputs, outputs, stride)
        return nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


@register_model("cifar_resnet20")
def cifar_resnet20() -> nn.Module:
    return CifarResNet(3)


@register_model("cifar_resnet32")
def cifar_resnet32() -> nn.Module:
    return CifarResNet(5)


@register_model("cifar_resnet44")
def cifar_resnet44() -> nn.Module:
    return CifarResNet(7)


@register_model("cifar_resnet56")
def cifar_resnet56() -> nn.Module:
    return CifarResNet(9)


@register_model("cifar_resnet110")
def cifar_resnet110() -> nn.Module:
    return CifarResNet(18)


@register_model("digits_resnet")
def digits_resnet() -> nn.Module:
    """A ResNet-14 for 8 x 8 gray images: 14 layers that can be compressed."""
    return CifarResNet(2, widths=(8, 16, 32), channels=1)
