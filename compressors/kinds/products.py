"""Products of a weight with its inputs: a registry from torch's operations to what reads them.

A user's own operation is read by a function of the user's:

    @reads("mylib::packed_linear")
    def packed(call: Call) -> list[Product]: ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operation, `name` without overload ("aten::mm"); `out` is what it gave."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any


@dataclass(frozen=True)
class Product:
    """One reading of a call: matrices times inputs.

    kind: of layer, as the database names it.
    view: the weight, or numbers in its shape -> [matrices, groups, rows, channels, *kernel], a
        view. As a matrix [groups, rows, columns] its columns run kernel position x channel, channel
    last. columns: the input -> for each matrix X [groups, positions, columns]; a table's, which
        looks rows up, int64 [positions]: which rows.
    macs: multiply-accumulates of the call; 0 for a table.
    widens: how many times its values X holds, where X is a copy that may be made for a part of the
        samples (of the input's first dimension); 0 where X is a view.
    """

    kind: str
    weight: Tensor
    input: Tensor
    view: Callable[[Tensor], Tensor]
    columns: Callable[[Tensor], Sequence[Tensor]]
    macs: int
    table: bool = False
    widens: int = 0

    def pieces(self, values: int) -> Iterator[Sequence[Tensor]]:
        """What `columns` gives, for as many samples at a time as make up `values` values."""
        if not self.widens:
            yield self.columns(self.input)
            return
        step = max(1, values // max(1, self.input[:1].numel() * self.widens))
        for start in range(0, len(self.input), step):
            yield self.columns(self.input[start : start + step])


Reader = Callable[[Call], list[Product]]
"""A call -> its possible readings, empty where it multiplies nothing. Of those whose weights are
equally near to parameters the first is taken."""

_READERS: dict[str, Reader] = {}


def reads(*names: str) -> Callable[[Reader], Reader]:
    """Let a function read the operations of these names (as "aten::mm")."""

    def register(reader: Reader) -> Reader:
        _READERS.update(dict.fromkeys(names, reader))
        return reader

    return register


def products(call: Call) -> list[Product]:
    """All readings of a call."""
    reader = _READERS.get(call.name)
    return reader(call) if reader else []


def attention_macs(call: Call) -> int:
    """Multiply-accumulates of a fused attention, whose products have activations on both sides."""
    if not call.name.startswith("aten::_scaled_dot_product"):
        return 0
    query, keys, values = call.args[:3]
    positions = prod(query.shape[:-1]) * keys.shape[-2]
    return positions * (int(query.shape[-1]) + int(values.shape[-1]))
