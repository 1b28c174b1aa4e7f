"""Models that are a chain of blocks, each of which reads nothing but what the one before it gave.

The model's own forward runs, with the blocks before a cut giving at once what the last of them
gave when it last ran: what stands around the blocks (embeddings, masks, positions) is computed
again, which is little, and need not be known or kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apportion.compressors.kinds.watch import unfused
from apportion.compressors.layers import LayerSpec, hooked

Moment = tuple[int, int]
"""Of a pass: how many blocks have begun, and how many have ended."""
OUTSIDE = -1
"""The part of layers that stand before, between or behind the blocks."""
Part = int | None
"""A block's number, OUTSIDE, or None: used in several parts."""


class NotAChainError(Exception):
    """A model cannot be run block by block."""


@contextmanager
def skipped(blocks: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Inside, these blocks give `output` without being run."""

    def given(*_args: Any, **_kwargs: Any) -> Any:
        return output

    with ExitStack() as stack:
        for block in blocks:
            own: dict[str, Any] = vars(block)
            before = own.get("forward")  # one that is the instance's own
            own["forward"] = given
            stack.callback(own.pop, "forward") if before is None else stack.callback(
                own.__setitem__, "forward", before
            )
        yield


class Reads:
    """Which tensors one pass reads, and when. Raises NotAChainError where the blocks do not run
    once each, in their order."""

    def __init__(
        self, model: nn.Module, blocks: Sequence[nn.Module], run: Callable[[], object]
    ) -> None:
        begun: list[nn.Module] = []
        done: list[nn.Module] = []
        moments: dict[int, set[Moment]] = {}

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(
                self, func: Any, _types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                for leaf in tree_leaves((args, kwargs)):
                    if isinstance(leaf, Tensor):
                        now = (len(begun), len(done))
                        moments.setdefault(leaf.untyped_storage().data_ptr(), set()).add(now)
                return func(*args, **(kwargs or {}))

        with torch.no_grad(), hooked() as handles, unfused(model), Mode():
            for block in blocks:
                handles.append(block.register_forward_pre_hook(lambda own, _: begun.append(own)))
                handles.append(block.register_forward_hook(lambda own, _, __: done.append(own)))
            run()
        if done != list(blocks) or begun != done:
            raise NotAChainError("its blocks do not run once each, in their order")
        self._moments = moments

    def of(self, tensor: Tensor) -> set[Moment]:
        """When its storage is read; none where it never is."""
        return self._moments.get(tensor.untyped_storage().data_ptr(), set())

    def parts(
        self, model: nn.Module, names: Sequence[str], layers: Iterable[LayerSpec]
    ) -> Mapping[str, Part]:
        """Layer -> its part, by all names of its parameters and by when they are read (those of an
        expert that got no token are not); blocks by their `names`."""
        return {layer.name: self._part(model, names, layer) for layer in layers}

    def _part(self, model: nn.Module, names: Sequence[str], layer: LayerSpec) -> Part:
        found: set[int] = set()
        for parameter in layer.where.parameters:
            inside = [k for k, name in enumerate(names) if parameter.startswith(f"{name}.")]
            found.add(inside[0] if inside else OUTSIDE)
            for begun, done in self.of(model.get_parameter(parameter)):
                found.add(done if begun > done else OUTSIDE)
        return found.pop() if len(found) == 1 else None
