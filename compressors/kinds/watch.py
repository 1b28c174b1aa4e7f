"""One pass of a model, seen operation by operation: which tensors come from which parameters, and
which products multiply with them.

A TorchDispatchMode sees what a product really gets, whatever the model's code did before: padding,
windows, views, casts, keyword calls, functional calls, modules that are used twice.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from apportion.compressors.kinds import builtin
from apportion.compressors.kinds.origins import Origin, Origins, dense, elements, key
from apportion.compressors.kinds.products import Call, Product, attention_macs, products

_MOVES = frozenset(
    {
        *("clone", "_to_copy", "cat", "stack", "flip", "roll", "repeat", "constant_pad_nd"),
        *("index", "index_select", "gather", "embedding"),
    }
)
"""Operations that only move values."""
_SHAPE_ONLY = frozenset(
    {
        *("zeros_like", "ones_like", "empty_like", "full_like"),
        *("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided"),
    }
)
"""Operations that take nothing but a tensor's shape."""
assert builtin  # what is registered by importing it
_OPS_NAMED = 8
"""The last operations of a chain are told."""


@contextmanager
def unhurried() -> Iterator[None]:
    """Inside, attention does not take the fast path that it takes where nothing looks on: what a
    layer is given then depends on no hook elsewhere, to the bit."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Inside, attention and recurrent layers run as the products that they are, and casts that were
    made earlier are made again."""
    with ExitStack() as stack:
        stack.enter_context(unhurried())
        saved = (torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled())
        for module in model.modules():
            if isinstance(module, nn.RNNBase):
                before = functools.partial(_libraries, False, False)
                after = functools.partial(_libraries, *saved)
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(after, always_call=True).remove)
        torch.clear_autocast_cache()
        yield


class Watch(TorchDispatchMode):
    """Follows one pass of `model` over `batch` (any tree of tensors). Subclasses take what it
    sees."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, batch: Any) -> None:
        super().__init__()
        self.origins = Origins(model)
        for tensor in _tensors(batch):
            self.origins.set(tensor, Origin(live=True))

    def used(self, product: Product, live: bool) -> None:
        """A product with a parameter's values, or a part of them, as they are; `live`: its input
        depends on the batch."""

    def multiplied(self, what: str, macs: int) -> None:
        """Any other product's multiply-accumulates: of a weight that is `derived` from parameters,
        of `constant` tensors, or of `activations`."""

    def refused(self, parameter: str, reason: str) -> None:
        """A parameter from which the weight of a product is computed, or which is written to."""

    def reached(self, parameter: str, operation: str) -> None:
        """An operation that takes the parameter's values and is no product with them."""

    def stranger(self, text: str) -> None:
        """A product with a weight that is none of the model's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, torch._ops.HigherOrderOperator):
            return NotImplemented
        kwargs = kwargs or {}
        if composite(func):
            with self:  # inference mode brings these whole
                return func.decompose(*args, **kwargs)
        inputs = _tensors((args, kwargs))
        before = {id(t): self.origins.of(t) for t in inputs}
        out = func(*args, **kwargs)
        weight = self._product(Call(func._schema.name, args, kwargs, out))
        name = func._schema.name.split("::")[1]
        known = {key(t) for t in inputs}
        fresh = [t for t in _tensors(out) if key(t) not in known]
        written = [
            t
            for i, n in written_to(func)
            for t in _tensors(args[i] if i < len(args) else kwargs.get(n))
        ]
        if name in _SHAPE_ONLY or not inputs:
            for t in fresh:
                self.origins.set(t, Origin())
        elif fresh or written:  # else it is a view
            self._follow(func, name, args, kwargs, before, fresh, written, weight)
        return out

    def _follow(
        self,
        func: Any,
        name: str,
        args: Any,
        kwargs: Any,
        before: dict[int, Origin],
        fresh: list[Tensor],
        written: list[Tensor],
        weight: Origin | None,
    ) -> None:
        """Give what an operation made (`fresh`) or wrote to (`written`) its origin."""
        origins = list(before.values())
        names = frozenset[str]().union(*(o.names for o in origins))
        ops = dict.fromkeys([op for o in origins for op in o.ops] + [name])
        live = any(o.live for o in origins)
        result = Origin(names, tuple(ops)[-_OPS_NAMED:], live)
        sources = origins if name in ("cat", "stack") else origins[:1]
        moves = name in _MOVES and not written and len(fresh) == 1 and weight is None
        if moves and all(o.moved for o in sources):
            self._move(func, name, args, kwargs, before, fresh[0], result)
        else:
            for o in origins:
                if o.moved and o is not weight:
                    for parameter in o.names:
                        self.reached(parameter, name)
        if result.live and not result.moved:
            result.names, result.ops = frozenset(), ()
        for t in written:
            old = self.origins.of(t)
            if old.first is not None and not old.ops:
                for parameter in old.names:
                    self.refused(parameter, f"forward writes into it ({name})")
        changed = [t for t in written if self.origins.of(t).ops or not self.origins.of(t).moved]
        for t in [*fresh, *changed]:
            own = Origin(result.names, result.ops, result.live, result.first, result.numbers)
            self.origins.set(t, own)

    def _move(
        self,
        func: Any,
        name: str,
        args: Any,
        kwargs: Any,
        before: dict[int, Origin],
        made: Tensor,
        result: Origin,
    ) -> None:
        """Keep the element numbers of what was only moved: a shift where a copy is laid out as its
        source is; else the same move of the numbers, made when somebody asks."""
        source = next(t for t in tree_leaves(args) if isinstance(t, Tensor))
        origin = before[id(source)]
        as_it_was = made.stride() == source.stride() and dense(source)
        if name in ("clone", "_to_copy") and origin.first is not None and as_it_was:
            result.first = origin.first + int(source.storage_offset() - made.storage_offset())
            return

        def given(a: Any) -> Any:
            if not isinstance(a, Tensor):
                return a
            return self.origins.numbers(a) if before[id(a)].moved else a.clone()

        kept = tree_map(given, args)
        size, stride, offset = made.size(), made.stride(), made.storage_offset()
        count = elements(made)

        def numbers() -> Tensor:
            now = tree_map(lambda a: a() if callable(a) else a, kept)
            if name == "constant_pad_nd":
                now = (*now[:2], -1)
            moved = now[0] if name in ("clone", "_to_copy") else func(*now, **kwargs)
            flat = torch.full((count,), -1)
            flat.as_strided(size, stride, offset).copy_(moved)
            return flat

        result.numbers = functools.cache(numbers)

    def _product(self, call: Call) -> Origin | None:
        """Tell the subclass of a product; its weight's origin where that is a parameter's
        values."""
        if fused := attention_macs(call):
            self.multiplied("activations", fused)
        sides = products(call)
        if any(self.origins.of(s.weight).outside for s in sides):
            self.origins.register()
        sides = [s for s in sides if s.macs or s.table]
        if not sides:
            return None
        side = max(sides, key=lambda s: self.origins.of(s.weight).rank)  # of equals the first
        weight, other = self.origins.of(side.weight), self.origins.of(side.input)
        if weight.moved and not (weight.live and other.moved):
            if side.table and not other.live:
                return None  # a table that is laid out, as for positions
            self.used(side, other.live or other.outside)
            return weight
        self._no_weight(call, sides, side)
        return None

    def _no_weight(self, call: Call, sides: Sequence[Product], side: Product) -> None:
        weight, other = self.origins.of(side.weight), self.origins.of(side.input)
        own = weight.names & self.origins.parameters.keys()
        derived = other.live and not weight.live and bool(own)
        both = all(self.origins.of(s.weight).live for s in sides)
        what = "derived" if derived else "activations" if both else "constant"
        self.multiplied(what, side.macs)
        name = call.name.split("::")[1]
        if derived:
            source = ", ".join(sorted(weight.names)[:4])
            for parameter in own:
                self.refused(
                    parameter,
                    f"{name} multiplies by a tensor computed from {source} "
                    f"({', '.join(weight.ops)})",
                )
        if other.live and weight.outside and not side.table:
            self.stranger(f"{name} by {tuple(side.weight.shape)}")


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


@functools.cache
def composite(func: Any) -> bool:
    kernel = "CompositeImplicitAutograd"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), kernel))


@functools.cache
def written_to(func: Any) -> list[tuple[int, str]]:
    """The arguments that an operation writes to."""
    arguments = enumerate(func._schema.arguments)
    return [(i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write]


def _libraries(mkldnn: bool, cudnn: bool, *_: Any) -> None:
    torch._C._set_mkldnn_enabled(mkldnn)
    torch._C._set_cudnn_enabled(cudnn)
