"""The names of layers, as users know them: the module's, with a suffix where it has several
weights.

A module whose parameter holds several weights in its rows says so in a function of its kind:

    @rows_of(MyAttention)
    def my_rows(module: nn.Module, parameter: str) -> list[tuple[str, int]]: ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TypeVar

from torch import Tensor, nn

from apportion.compressors.place import Place

Rows = Callable[[nn.Module, str], list[tuple[str, int]]]
"""(module, name of its parameter) -> (suffix of the layer's name, rows) of each weight in it, in
order; empty where the parameter is one weight."""
_ROWS: dict[type[nn.Module], Rows] = {}
_R = TypeVar("_R", bound=Rows)


def rows_of(kind: type[nn.Module]) -> Callable[[_R], _R]:
    """Let a function tell what the rows of parameters of such modules are."""

    def register(function: _R) -> _R:
        _ROWS[kind] = function
        return function

    return register


class Names:
    """The names of a model's weights."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._cuts: dict[str, list[tuple[str, int]]] = {}

    def cuts(self, parameter: str) -> Sequence[int]:
        """The rows of a parameter before which another weight begins."""
        edges, at = [], 0
        for _, rows in self._rows(parameter)[:-1]:
            at += rows
            edges.append(at)
        return edges

    def of(self, place: Place, parameter: str) -> str:
        """The name of the weight at `place` of a parameter."""
        path, _, attribute = parameter.rpartition(".")
        value = self._model.get_parameter(parameter)
        if suffix := self._suffix(place, value, self._rows(parameter)):
            return _join(path, suffix)
        part = _slices(place, value)
        return _join(path, _short(attribute), *part)

    def _suffix(self, place: Place, value: Tensor, rows: list[tuple[str, int]]) -> str:
        """Of the rows that are exactly those of `place`."""
        width, at = value[0].numel() if value.dim() else 1, 0
        for suffix, count in rows:
            if place.offset == at * width and prod(place.sizes) == count * width:
                return suffix
            at += count
        return ""

    def _rows(self, parameter: str) -> list[tuple[str, int]]:
        if parameter not in self._cuts:
            path, _, attribute = parameter.rpartition(".")
            module = self._model.get_submodule(path)
            found = next((rows for kind, rows in _ROWS.items() if isinstance(module, kind)), None)
            self._cuts[parameter] = found(module, attribute) if found else []
        return self._cuts[parameter]


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Names -> parameters of two dimensions and more: those that may be weights of products; a
    shared one once."""
    names = ((name.rpartition("."), p) for name, p in model.named_parameters() if p.dim() > 1)
    return {_join(path, _short(attribute)): p for (path, _, attribute), p in names}


def _short(attribute: str) -> str:
    """What a parameter's name adds to its module's: nothing for `weight`."""
    if attribute == "weight":
        return ""
    return attribute.removeprefix("weight_").removesuffix("_weight")


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _slices(place: Place, value: Tensor) -> list[str]:
    """Which part of the parameter: for each dimension an index, or first-last; none for the
    whole."""
    if prod(place.sizes) == value.numel():
        return []
    reach = sum((n - 1) * s for n, s in zip(place.sizes, place.strides, strict=True))
    low, high = _index(place.offset, value), _index(place.offset + reach, value)
    texts = []
    for first, last, size in zip(low, high, value.shape, strict=True):
        whole = first == 0 and last == size - 1
        texts.append("all" if whole else str(first) if first == last else f"{first}-{last}")
    while texts and texts[-1] == "all":
        texts.pop()
    return texts


def _index(number: int, value: Tensor) -> list[int]:
    index = []
    for size in reversed(value.shape):
        index.append(number % size)
        number //= size
    return index[::-1]
