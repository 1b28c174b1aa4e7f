"""How channel numbers pass through operations that are no products with weights: one function a
kind of operation. What none of them knows keeps its channels as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from apportion.compressors.groups.labels import NONE, Book, Labels, varying

MOVES = frozenset(
    {
        *("clone", "_to_copy", "cat", "stack", "flip", "roll", "repeat", "constant_pad_nd"),
        *("index", "index_select", "gather", "copy_", "reflection_pad2d", "replication_pad2d"),
        *("lift_fresh_copy", "repeat_interleave", "_unsafe_index", "pixel_shuffle"),
    }
)
LINEAR = frozenset(
    {
        *("mean", "sum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d"),
        *("_adaptive_avg_pool3d", "adaptive_avg_pool1d", "upsample_nearest2d"),
        *("upsample_bilinear2d", "upsample_nearest1d", "upsample_bicubic2d"),
    }
)
LARGEST = frozenset(
    {
        *("max_pool2d_with_indices", "max_pool3d_with_indices", "amax", "max_pool2d", "max"),
        *("adaptive_max_pool2d", "mkldnn_max_pool2d"),
    }
)
NORMS = frozenset(
    {
        *("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
        *("_native_batch_norm_legit", "_batch_norm_no_update", "_batch_norm_with_update"),
        "miopen_batch_norm",
    }
)
POINTWISE = frozenset(
    {
        *("hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "hardtanh", "hardtanh_"),
        *("_prelu_kernel", "elu", "elu_", "softplus", "log_sigmoid_forward", "native_dropout"),
        *("masked_fill", "masked_fill_", "bernoulli_", "fill_", "zero_"),
    }
)
"""Those that torch does not tag so."""
LIKE = frozenset({"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"})
"""Tensors of another's shape, which follow it when a channel goes."""
ACROSS = frozenset(
    {"native_layer_norm", "native_group_norm", "_fused_rms_norm", "linalg_vector_norm", "cumsum"}
)
"""Operations over several channels that would give others something else if one were gone."""


_CUTS = frozenset(
    {"split", "split_with_sizes", "slice", "select", "narrow", "unbind", "diagonal", "unfold"}
)
"""Views of a part of a tensor."""


def tensors(tree: Any) -> list[Tensor]:
    """Of any tree."""
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def output_tensors(tree: Any, depth: int = 8) -> list[Tensor]:
    """Of what a model gives: those in objects of its own classes, too, but for a cache of keys and
    values, which only the model reads."""
    found: list[Tensor] = []
    for leaf in tree_leaves(tree, is_leaf=_is_cache):
        if _is_cache(leaf):
            continue
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif depth and hasattr(leaf, "__dict__") and not isinstance(leaf, type):
            found += output_tensors(list(vars(leaf).values()), depth - 1)
    return found


def _is_cache(tree: Any) -> bool:
    """Of the transformers library."""
    return any(
        own.__name__ == "Cache" and own.__module__.startswith("transformers.")
        for own in type(tree).__mro__
    )


class Step:
    """One operation: what it is, its tensors and what it gave."""

    def __init__(
        self, labels: Labels, book: Book, func: Any, args: Any, kwargs: Any, out: Any
    ) -> None:
        self.labels, self.book, self.func = labels, book, func
        self.args, self.kwargs, self.out = args, kwargs, out
        self.name = func._schema.name.split("::")[1]
        self.inputs = tensors((args, kwargs))
        self.results = tensors(out)
        self.macs = 0
        """Multiply-accumulates of activations with each other."""

    @property
    def numbered(self) -> bool:
        """Whether any input belongs to channels."""
        return any(self.labels.known(t) for t in self.inputs)

    def again(self, replace: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """What the operation makes of other tensors in its tensors' places."""
        args, kwargs = tree_map(
            lambda a: replace(a) if isinstance(a, Tensor) else a, (self.args, self.kwargs)
        )
        made = self.func(*args, **kwargs)
        return tensors(made)

    def lock(self, reason: str = "") -> None:
        """All channels of the inputs stay, and the results belong to none."""
        for t in self.inputs:
            self.book.lock(self.labels.of(t), reason or f"{self.name} takes several channels")


def moved(step: Step) -> None:
    """Numbers go where the values go."""
    if step.name == "copy_":
        target, source = step.inputs[:2]
        step.labels.set(target, step.labels.of(source).expand(target.shape))
        return

    values = step.inputs if step.name in ("cat", "stack") else step.inputs[:1]

    def number(t: Tensor) -> Tensor:
        if any(t is value for value in values):
            return step.labels.of(t).clone()
        step.book.lock(step.labels.of(t), f"{step.name} chooses by them")
        return t

    if step.name == "roll":
        numbers = step.labels.of(step.inputs[0])
        dims = step.args[2] if len(step.args) > 2 else step.kwargs.get("dims", ())
        if not dims or {d % numbers.dim() for d in dims} & set(varying(numbers)):
            step.lock("roll moves them by a number that the model's code says")
            return
    kept = dict(step.kwargs)
    kept.pop("dtype", None)
    args, kept = tree_map(lambda a: number(a) if isinstance(a, Tensor) else a, (step.args, kept))
    if step.name == "constant_pad_nd":
        args = (*args[:2], NONE)
    made = args[0] if step.name == "_to_copy" else step.func(*args, **kept)
    step.labels.set(step.results[0], made)


def pointwise(step: Step) -> None:
    """Elements that meet are of one channel. An input that has a channel's extent and no channels
    could not follow, if one went: those stay."""
    shape = step.results[0].shape
    fitting = [t for t in step.inputs if _fits(t.shape, shape)]
    pairs = [(step.labels.of(t).expand(shape), _aligned(t.shape, shape)) for t in fitting]
    # The finest numbers stand for the result, those of parameters for want of others.
    pairs.sort(key=lambda own: (step.book.of_parameter(own[0]), -len(varying(own[0]))))
    result = pairs[0][0] if pairs else torch.zeros(shape, dtype=torch.int64)
    reason = f"{step.name} joins them with what is in no channel of the model's"
    for each, size in pairs[1:]:
        long = [d for d in varying(result) if size[d] > 1]
        if long and len(long) < len(varying(result)) and step.book.of_parameter(each):
            step.book.join_unless_heads(result, each, long, reason)  # one for all heads
        else:
            step.book.join(result, each)
        result = torch.where(result > 0, result, each)
    changing = varying(result)
    for each, size in pairs:
        long = [d for d in changing if size[d] > 1]
        lost = (each == NONE) & (result > 0)
        if long and bool(lost.any()):
            step.book.lock_along(result, long, reason, result[lost])
    for t in step.results:
        step.labels.set(t, result)


def linear(step: Step) -> None:
    """A weighted sum: of one channel if all that it sums are."""
    x = step.inputs[0]
    labels = step.labels.of(x)
    if step.name in ("mean", "sum", "linalg_vector_norm") and _within_parts(step, labels):
        return
    numbers = labels.double()

    def summed(values: Tensor) -> Tensor:
        return step.again(lambda t: values if t is x else t)[0]

    whole = summed(torch.ones_like(numbers))
    mixed = torch.zeros(whole.shape, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):  # random values of the numbers: large numbers would hide small differences
        values = torch.rand(step.book.total, generator=generator, dtype=torch.float64)[labels]
        mean = summed(values) / whole
        mixed |= (summed(values**2) / whole - mean**2).abs() > 1e-9
    _settle(step, summed(numbers) / whole, mixed)


def _within_parts(step: Step, labels: Tensor) -> bool:
    """Whether it is over a part of the dimensions along which numbers change: over each head's
    channels alone, if they are heads."""
    at = 2 if step.name == "linalg_vector_norm" else 1
    dims = step.args[at] if len(step.args) > at else step.kwargs.get("dim")
    over = {d % labels.dim() for d in dims or ()}
    changing = set(varying(labels))
    if not over & changing or over >= changing:
        return False
    step.book.lock_along(labels, sorted(over), f"{step.name} takes several channels")
    numbers = labels.amax(sorted(over), keepdim=True)
    step.labels.set(step.results[0], numbers.reshape(step.results[0].shape))
    return True


def largest(step: Step) -> None:
    """The largest of some: of one channel if all are."""
    x = step.inputs[0]
    numbers = step.labels.of(x).double()
    high = step.again(lambda t: numbers if t is x else t)[0]
    low = -step.again(lambda t: -numbers if t is x else t)[0]
    _settle(step, high, high != low)


def _settle(step: Step, found: Tensor, mixed: Tensor) -> None:
    if bool(mixed.any()):
        step.lock()
        return
    step.labels.set(step.results[0], found.round().long())


def softmax(step: Step) -> None:
    x, dim = step.inputs[0], int(step.args[1])
    numbers = step.labels.of(x)
    changing = varying(numbers)
    if changing == [dim % max(1, x.dim())]:
        step.lock()
        return
    step.book.lock_along(numbers, [dim % max(1, x.dim())], f"{step.name} takes several channels")
    step.labels.set(step.results[0], numbers)


def like(step: Step) -> None:
    step.labels.set(step.results[0], step.labels.of(step.inputs[0]))


def batch_norm(step: Step) -> None:
    """Every channel alone, with a number or two of its own."""
    x = step.inputs[0]
    numbers = step.labels.of(x)
    lead = [1, -1, *[1] * (x.dim() - 2)]
    for t in step.inputs[1:]:
        if t.dim() == 1 and len(t) == x.shape[1]:
            step.book.join(numbers, step.labels.of(t).reshape(lead).expand_as(numbers))
    step.labels.set(step.results[0], numbers)


def across(step: Step) -> None:
    x = step.inputs[0]
    reason = f"{step.name} is over all of them, and would change"
    if step.name in ("native_layer_norm", "_fused_rms_norm"):
        last = range(x.dim() - len(step.args[1]), x.dim())
        step.book.lock_along(step.labels.of(x), last, reason)
    elif step.name == "linalg_vector_norm" and _within_parts(step, step.labels.of(x)):
        return
    else:
        step.book.lock(step.labels.of(x), reason)
    if step.results and step.results[0].shape == x.shape:
        step.labels.set(step.results[0], step.labels.of(x))


def view(step: Step) -> None:
    """A view that puts a dimension of channels into two, or cuts it into parts: as many must go
    from each part, the same of each, but whole parts if they are heads. Where else it is cut, the
    channels stay: a model's code says where, and would go on to say so."""
    before = varying(step.labels.of(step.inputs[0]))
    if any(t.itemsize != step.inputs[0].itemsize for t in step.results):
        step.lock(f"{step.name} reads them as other numbers")
        return
    if step.name in ("view", "_unsafe_view"):
        after = step.labels.of(step.results[0])
        changing = varying(after)
        if len(before) == 1 and len(changing) > 1:
            for d in changing[:-1]:
                step.book.join_unless_heads(after, after.narrow(d, 0, 1).expand_as(after))
        return
    if step.name not in _CUTS:
        return
    dim = int(step.args[1] if len(step.args) > 1 else step.kwargs.get("dim", 0))
    if step.name in ("split", "split_with_sizes"):
        dim = int(step.args[2] if len(step.args) > 2 else step.kwargs.get("dim", 0))
    x_dim = max(1, step.inputs[0].dim())
    if dim % x_dim not in before:
        return
    shapes = {t.shape for t in step.results}
    if step.name == "split" and len(shapes) == 1:
        first = step.labels.of(step.results[0])
        for t in step.results[1:]:
            step.book.join(first, step.labels.of(t))
    elif step.results[0].shape != step.inputs[0].shape:
        reason = f"{step.name} cuts them at a place that the model's code says"
        if step.name in ("diagonal", "unfold"):
            step.lock(reason)
        else:
            step.book.lock_along(step.labels.of(step.inputs[0]), [dim % x_dim], reason)


def _fits(size: torch.Size, shape: torch.Size) -> bool:
    return len(size) <= len(shape) and all(
        n in (1, m) for n, m in zip(reversed(size), reversed(shape), strict=False)
    )


def _aligned(size: torch.Size, shape: torch.Size) -> tuple[int, ...]:
    return (*[1] * (len(shape) - len(size)), *size)
