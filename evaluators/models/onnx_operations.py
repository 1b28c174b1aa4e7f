"""Operations of ONNX that take shapes, axes or weights as tensors, with numbers or layers in their
place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZES = (2, 3)
"""Of the two batches that a model is looked at with."""

Pair = tuple[Any, Any]
"""A value with the one batch and with the other."""
Sizes = tuple[Any, ...]
"""Numbers, or (k,) for k times the size of the batch."""
Static = tuple[Callable[..., Any], tuple[Any, ...]]
"""What is called instead, and with what behind the input that is not known."""


def reshape(x: Tensor, sizes: Sizes) -> Tensor:
    """0 is the size that is there."""
    made = [
        size[0] * x.shape[0] if isinstance(size, tuple) else size or x.shape[at]
        for at, size in enumerate(sizes)
    ]
    return torch.reshape(x, made)


def expand(x: Tensor, sizes: Sizes) -> Tensor:
    """-1 is the size that is there."""
    made = [size[0] * x.shape[0] if isinstance(size, tuple) else size for size in sizes]
    return x.expand(made)


def cut(x: Tensor, ranges: tuple[tuple[int, int, int, int], ...]) -> Tensor:
    """By (axis, start, end, step); a step below 0 turns the axis round first."""
    for axis, start, end, step in ranges:
        if step < 0:
            x, start, end, step = x.flip(axis), -start - 1, -end - 1, -step
        x = x[(slice(None),) * axis + (slice(start, end, step),)]
    return x


def take(x: Tensor, axis: int, index: Any) -> Tensor:
    """What stands at an index along an axis, or at some of them."""
    if isinstance(index, int):
        return x.select(axis, index)
    return x[(slice(None),) * axis + (list(index),)]


def squeeze(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return torch.squeeze(x, axes)


def unsqueeze(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    for axis in axes:
        x = x.unsqueeze(axis)
    return x


def resize(x: Tensor, sizes: Any, scales: Any, mode: str, corners: bool | None) -> Tensor:
    return F.interpolate(x, sizes, scales, mode, corners)


def pad(x: Tensor, pads: tuple[int, ...], mode: str, value: float) -> Tensor:
    """`pads` as ONNX has them: what goes before each axis, then what goes behind each."""
    half = len(pads) // 2
    pairs = [(pads[axis], pads[half + axis]) for axis in reversed(range(half))]
    while pairs and pairs[-1] == (0, 0):  # torch pads few axes by its other modes
        pairs.pop()
    return F.pad(x, [size for pair in pairs for size in pair], mode, value)


def split(x: Tensor, sizes: tuple[int, ...], axis: int) -> tuple[Tensor, ...]:
    return torch.split(x, list(sizes), axis)


def total(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.sum(x, axes, keep)


def static(module: Any, at: str, told: Mapping[str, Pair]) -> Static | None:
    """What becomes of an operation.

    Args:
        module: onnx2torch's.
        at: the name of its one input that is not known.
        told: the values of all its inputs, with the one batch and the other.

    Returns:
        None where it stays as it is.
    """
    make = _MAKERS.get((type(module).__name__, at))
    return None if make is None else make(module, told)


def _reshape(_module: Any, told: Mapping[str, Pair]) -> Static:
    sizes = _sizes(told["shape"])
    batch = tuple(len(x) for x in told["input_tensor"])
    if sizes[0] == 1 and batch == SIZES and not any(isinstance(size, tuple) for size in sizes):
        sizes = ((1,), *sizes[1:])  # a file for a batch of one
    return reshape, (sizes,)


def _expand(_module: Any, told: Mapping[str, Pair]) -> Static:
    """As numpy broadcasts: a size of 1 is the one that is there."""
    sizes, x = _sizes(told["shape"]), told["input_tensor"][0]
    missing = len(sizes) - x.dim()
    if missing < 0:
        sizes, missing = (1,) * -missing + sizes, 0
    return expand, (tuple(-1 if s == 1 and at >= missing else s for at, s in enumerate(sizes)),)


def _cut(_module: Any, told: Mapping[str, Pair]) -> Static:
    starts, ends = _numbers(told["starts"]), _numbers(told["ends"])
    axes = _numbers(told["axes"]) if "axes" in told else tuple(range(len(starts)))
    axes = tuple(axis % told["input_tensor"][0].dim() for axis in axes)
    steps = _numbers(told["steps"]) if "steps" in told else (1,) * len(starts)
    return cut, (tuple(zip(axes, starts, ends, steps, strict=True)),)


def _take(module: Any, told: Mapping[str, Pair]) -> Static:
    index = _same(told["indices"])
    if index.dim() > 1:
        raise ValueError("Gather by a table of indices is not known here")
    axis = module._axis % told["input_tensor"][0].dim()
    return take, (axis, index.tolist() if not index.dim() else tuple(index.tolist()))


def _look_up(module: Any, told: Mapping[str, Pair]) -> Static | None:
    """Rows of a constant table."""
    table = told["input_tensor"][0]
    if module._axis or table.dim() != 2 or not table.is_floating_point():
        return None
    return nn.Embedding.from_pretrained(table, freeze=False), ()


def _multiply(_module: Any, told: Mapping[str, Pair]) -> Static | None:
    """By a constant matrix [inputs, outputs]."""
    matrix = told["y"][0]
    if matrix.dim() != 2:
        return None
    layer = nn.Linear(matrix.shape[0], matrix.shape[1], bias=False)
    layer.weight = nn.Parameter(matrix.T.contiguous())
    return layer, ()


def _resize(module: Any, told: Mapping[str, Pair]) -> Static:
    x, scales, sizes = (told.get(name) for name in ("input_tensor", "scales", "sizes"))
    assert x is not None
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[x[0].dim() - 2]
    if module.onnx_mode != "linear":
        mode = {"nearest": "nearest", "cubic": "bicubic"}[module.onnx_mode]
    size = tuple(sizes[0].tolist()[2:]) if sizes and sizes[0].numel() else None
    scale = tuple(scales[0].tolist()[2:]) if scales and scales[0].numel() else None
    return resize, (size, None if size else scale, mode, module.align_corners)


def _resize_by_scales(module: Any, told: Mapping[str, Pair]) -> Static:
    return _resize(module._resize, told)


def _pad(module: Any, told: Mapping[str, Pair]) -> Static:
    value = float(told["constant_value"][0]) if "constant_value" in told else 0.0
    return pad, (_numbers(told["pads"]), module.mode, value)


def _squeeze(_module: Any, told: Mapping[str, Pair]) -> Static | None:
    return (squeeze, (_numbers(told["axes"]),)) if "axes" in told else None


def _unsqueeze(_module: Any, told: Mapping[str, Pair]) -> Static:
    return unsqueeze, (tuple(sorted(_numbers(told["axes"]))),)


def _split(module: Any, told: Mapping[str, Pair]) -> Static | None:
    return (split, (_numbers(told["split"]), module.axis)) if "split" in told else None


def _total(module: Any, told: Mapping[str, Pair]) -> Static | None:
    if "axes" not in told or not told["axes"][0].numel():
        return None
    return total, (_numbers(told["axes"]), bool(module._keepdims))


_MAKERS: dict[tuple[str, str], Callable[[Any, Mapping[str, Pair]], Static | None]] = {
    ("OnnxReshape", "input_tensor"): _reshape,
    ("OnnxExpand", "input_tensor"): _expand,
    ("OnnxSlice", "input_tensor"): _cut,
    ("OnnxGather", "input_tensor"): _take,
    ("OnnxGather", "indices"): _look_up,
    ("OnnxMatMul", "x"): _multiply,
    ("OnnxResize", "input_tensor"): _resize,
    ("OnnxResizeV10", "input_tensor"): _resize_by_scales,
    ("OnnxPadDynamic", "input_tensor"): _pad,
    ("OnnxSqueezeDynamicAxes", "input_tensor"): _squeeze,
    ("OnnxUnsqueezeDynamicAxes", "input_tensor"): _unsqueeze,
    ("OnnxSplit13", "input_tensor"): _split,
    ("OnnxReduceSumDynamicAxes", "input_tensor"): _total,
}
"""By onnx2torch's class and the input that is not known."""


def _same(pair: Pair) -> Tensor:
    """Raises ValueError where the batch's size is in it."""
    one, other = pair
    if not torch.equal(one, other):
        raise ValueError("it depends on the batch size in a way not known here")
    found: Tensor = one
    return found


def _numbers(pair: Pair) -> tuple[int, ...]:
    return tuple(_same(pair).tolist())


def _sizes(pair: Pair) -> Sizes:
    """What differs between the batches is a multiple of their size."""
    one, other = (each.tolist() for each in pair)
    found: list[Any] = []
    for a, b in zip(one, other, strict=True):
        if a == b:
            found.append(a)
        elif a * SIZES[1] == b * SIZES[0] and a % SIZES[0] == 0:
            found.append((a // SIZES[0],))
        else:
            raise ValueError("a shape depends on the batch size in a way not known here")
    return tuple(found)
