"""What every tensor of a pass was made from, kept for each storage.

A storage is known by its StorageImpl: an address can be given out again, and a Python id too. A
weak reference keeps that identity from being reused, and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

OUTSIDE = "a tensor from outside the model"
"""Among an origin's names: values that are neither the batch's nor the model's."""


@dataclass(slots=True)
class Origin:
    """names: the parameters and buffers that it was computed from; ops: by which operations; live:
    whether it depends on the batch. Values of parameters that were only moved keep their numbers:
    either element e of the storage is parameter element `first + e`, or `numbers()` gives int64
    [elements of the storage], -1 where there is none."""

    names: frozenset[str] = frozenset()
    ops: tuple[str, ...] = ()
    live: bool = False
    first: int | None = None
    numbers: Callable[[], Tensor] | None = None
    alive: Any = None

    @property
    def moved(self) -> bool:
        """Whether it holds values of parameters as they are."""
        return self.first is not None or self.numbers is not None

    @property
    def outside(self) -> bool:
        return OUTSIDE in self.names

    @property
    def rank(self) -> int:
        """How well it does as a product's weight: a parameter best, what depends on the batch
        least."""
        if self.moved:
            return 2 if self.live else 3
        return -1 if self.live else int(bool(self.names))


class Origins:
    """The origins of all storages seen. All elements of the model's parameters are numbered
    through, storage by storage; `starts`: parameter -> the number of its first element."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[int, Origin] = {}
        self._total = 0
        self.starts: dict[str, int] = {}
        self.parameters: dict[str, Tensor] = {}
        self._in_order: list[tuple[int, str]] = []
        self.register()

    def register(self) -> None:
        """Number all parameters; once more for those that came during the pass (offloading)."""
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            origin = self._known.get(key(parameter))
            if origin is None or origin.first is None or origin.ops:
                origin = Origin(first=self._total)
                self.set(parameter, origin)
                self._total += elements(parameter)
            origin.names |= {name}
            assert origin.first is not None
            self.starts[name] = origin.first + int(parameter.storage_offset())
            self.parameters[name] = parameter.detach()
        for prefix, module in self._model.named_modules():
            for name, value in [*module._buffers.items(), *vars(module).items()]:
                if isinstance(value, Tensor) and key(value) not in self._known:
                    self.set(value, Origin(frozenset({f"{prefix}.{name}".lstrip(".")})))
        first: dict[int, str] = {}
        for name, start in self.starts.items():
            first.setdefault(start, name)
        self._in_order = sorted(first.items())

    def in_order(self) -> list[tuple[int, str]]:
        """Where parameters start, and the first name of each, by number."""
        return self._in_order

    def of(self, tensor: Tensor) -> Origin:
        return self._known.get(key(tensor)) or _UNKNOWN

    def set(self, tensor: Tensor, origin: Origin) -> None:
        has_storage = tensor.layout == torch.strided
        origin.alive = StorageWeakRef(tensor.untyped_storage()) if has_storage else tensor
        self._known[key(tensor)] = origin

    def numbers(self, tensor: Tensor) -> Callable[[], Tensor]:
        """What gives the numbers of a moved tensor's elements, int64 in its shape."""
        origin = self.of(tensor)
        size, stride, offset = tensor.size(), tensor.stride(), tensor.storage_offset()
        if (stored := origin.numbers) is not None:
            return lambda: stored().as_strided(size, stride, offset)
        assert origin.first is not None
        start = origin.first + offset
        reach = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        return lambda: torch.arange(start, start + reach).as_strided(size, stride, 0)


_UNKNOWN = Origin(frozenset({OUTSIDE}))


def key(tensor: Tensor) -> int:
    """Of the tensor's storage; of the tensor itself where it has none (sparse ones)."""
    if tensor.layout != torch.strided:
        return id(tensor)
    return int(tensor.untyped_storage()._cdata)


def elements(tensor: Tensor) -> int:
    """Of the tensor's storage."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def dense(tensor: Tensor) -> bool:
    """Whether its elements fill a stretch of its storage, each once, in any order."""
    expected = 1
    for stride, size in sorted(
        (s, n) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True
