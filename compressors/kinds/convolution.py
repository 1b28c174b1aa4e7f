"""Convolutions and transposed convolutions of any number of dimensions, by the tensors that they
really get: padding that a model does itself has been done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from apportion.compressors.kinds.products import Call, Product, reads

_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a convolution moves over its input, which is padded with zeros; one number a
    dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    extra: tuple[int, ...]
    groups: int
    transposed: bool

    @property
    def kind(self) -> str:
        return f"conv{'_transpose' if self.transposed else ''}{len(self.kernel)}d"

    def view(self, weight: Tensor) -> Tensor:
        """[1, groups, rows, channels, *kernel] of a convolution's weight [groups x rows, channels,
        *kernel], or of a transposed one's [groups x channels, rows, *kernel]."""
        split = weight.unflatten(0, (self.groups, -1))
        return (split.transpose(1, 2) if self.transposed else split)[None]

    def columns(self, x: Tensor) -> Tensor:
        """Input [n, channels, *extent] -> [groups, n x positions, kernel x channels]: each row is
        what one output position multiplies with."""
        steps, dims = self.stride, len(self.kernel)
        around = [(p, p) for p in self.padding]
        if self.transposed:
            x, around, steps = *self._apart(x), (1,) * dims
        x = F.pad(x, [p for pair in reversed(around) for p in pair])
        for d in range(dims):
            reach = self.dilation[d] * (self.kernel[d] - 1) + 1
            x = x.unfold(2 + d, reach, steps[d])[..., :: self.dilation[d]]
        if self.transposed:  # its kernel runs the other way
            x = x.flip([*range(-dims, 0)])
        x = x.unflatten(1, (self.groups, -1))
        order = (1, 0, *range(3, 3 + 2 * dims), 2)
        width = prod(self.kernel) * x.shape[2]
        positions = x.shape[0] * prod(x.shape[3 : 3 + dims])
        return x.permute(order).reshape(self.groups, positions, width)

    def _apart(self, x: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        """Zeros between the inputs, and the padding with which a convolution of stride 1 is the
        transposed one."""
        extents = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], self.stride, strict=True)]
        apart = x.new_zeros(*x.shape[:2], *extents)
        spread: Any = (..., *(slice(None, None, s) for s in self.stride))
        apart[spread] = x
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
        around = zip(reach, self.padding, self.extra, strict=True)
        return apart, [(r - p, r - p + e) for r, p, e in around]


def geometry_of(module: nn.Module) -> Geometry:
    """Of a convolution module whose input `padded` has seen."""
    assert isinstance(module, (*_MODULES, *_TRANSPOSED))
    made = isinstance(module, _TRANSPOSED)
    own = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    none = (0,) * len(module.kernel_size)
    return Geometry(
        module.kernel_size,
        module.stride,
        tuple(map(int, module.padding)) if own else none,
        module.dilation,
        module.output_padding if made else none,
        module.groups,
        made,
    )


def padded(module: nn.Module, x: Tensor) -> Tensor:
    """The input of a convolution module as it pads it where zeros on both sides do not do."""
    conv: Any = module
    if conv.padding_mode != "zeros":
        return F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
    if conv.padding == "same":
        return F.pad(x, conv._reversed_padding_repeated_twice)
    return x


@reads("aten::convolution", "aten::_convolution", "aten::convolution_overrideable")
def _convolution(call: Call) -> list[Product]:
    x, weight, _, stride, padding, dilation, transposed, extra, groups = call.args[:9]
    dims = weight.dim() - 2

    def each(values: Sequence[int]) -> tuple[int, ...]:
        return tuple(values) * dims if len(values) == 1 else tuple(values)

    geometry = Geometry(
        tuple(weight.shape[2:]),
        each(stride),
        each(padding),
        each(dilation),
        each(extra),
        groups,
        transposed,
    )
    moved = x if transposed else call.out
    macs = x.shape[0] * prod(moved.shape[2:]) * weight.numel()
    return [
        Product(
            geometry.kind,
            weight,
            x,
            geometry.view,
            lambda v: [geometry.columns(v)],
            macs,
            widens=prod(geometry.kernel),
        )
    ]
