"""From the elements that a product multiplies with to the parameters' parts that they are."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apportion.compressors.kinds.origins import Origins
from apportion.compressors.kinds.products import Product
from apportion.compressors.place import Place, row_major


class IrregularError(Exception):
    """A weight that is no regular part of a parameter; the text says why."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `start` to `start + rows` of a matrix, and the place of these weights."""

    start: int
    rows: int
    place: Place


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of a product: its parts, and which of the product's inputs it multiplies."""

    groups: int
    rows: int
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    inputs: tuple[int, ...]


Cuts = Callable[[str], Sequence[int]]
"""Parameter -> the rows (of its first dimension) before which a matrix is cut into layers."""


def locate(origins: Origins, product: Product, cuts: Cuts) -> list[Matrix]:
    """The distinct matrices of a product whose weight is moved parameter values. Raises
    IrregularError."""
    origin = origins.of(product.weight)
    if origin.first is None:
        return _by_number(origins, product, cuts)
    whole = product.view(product.weight)
    count, sizes = whole.shape[0], tuple(whole.shape[1:])
    step, strides = whole.stride(0), tuple(whole.stride()[1:])
    first = origin.first + int(whole.storage_offset())
    same = count > 1 and step == 0
    matrices = []
    for m in range(1 if same else count):
        grid = _Grid(first + m * step, sizes, strides)
        parts = _cut(_part(origins, grid, 0), cuts)
        inputs = tuple(range(count)) if same else (m,)
        matrices.append(_matrix(sizes, parts, inputs))
    return matrices


@dataclass(frozen=True, slots=True)
class _Grid:
    """Element numbers first + sum of index x stride."""

    first: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


def _matrix(sizes: Sequence[int], parts: Iterable[Part], inputs: tuple[int, ...]) -> Matrix:
    groups, rows, *rest = sizes
    return Matrix(groups, groups * rows, (groups * rows, *rest), tuple(parts), inputs)


def _by_number(origins: Origins, product: Product, cuts: Cuts) -> list[Matrix]:
    """Of a copy, whose elements are known by their numbers."""
    numbers = product.view(origins.numbers(product.weight)())
    if bool((numbers < 0).any()):
        raise IrregularError("values that are no parameter's stand in it")
    inputs: dict[bytes, list[int]] = {}
    for m, matrix in enumerate(numbers):
        inputs.setdefault(matrix.contiguous().numpy().tobytes(), []).append(m)
    made = []
    for same in inputs.values():
        matrix = numbers[same[0]]
        parts: list[Part] = []
        for start, stop in _stretches(origins, matrix):
            whole = stop - start == matrix.shape[0] * matrix.shape[1]
            rows = matrix if whole else matrix.flatten(0, 1)[None, start:stop]
            parts += _cut(_part(origins, _regular(rows), start), cuts)
        made.append(_matrix(matrix.shape, parts, tuple(same)))
    return made


def _stretches(origins: Origins, matrix: Tensor) -> list[tuple[int, int]]:
    """Rows (over all groups) of [groups, rows, ...] that belong to one parameter each."""
    leading = matrix.flatten(0, 1).flatten(1)[:, 0].tolist()
    owners = [_owner(origins, number)[0] for number in leading]
    edges = [i for i in range(1, len(owners)) if owners[i] != owners[i - 1]]
    if edges and matrix.shape[0] > 1:
        raise IrregularError("its groups come from several parameters")
    return list(zip([0, *edges], [*edges, len(owners)], strict=True))


def _part(origins: Origins, grid: _Grid, start: int) -> Part:
    """The place of a grid of elements, rows from `start` of its matrix."""
    name, base = _owner(origins, grid.first)
    parameter = origins.parameters[name]
    if not parameter.is_contiguous():
        grid, base = _in_order(grid, base, parameter), 0
    offset = grid.first - base
    reach = sum((n - 1) * s for n, s in zip(grid.sizes, grid.strides, strict=True))
    if offset + reach >= parameter.numel():
        raise IrregularError("it runs over several parameters")
    if not _one_to_one(grid):
        raise IrregularError("one value stands in several of its places")
    sizes, strides = _joined(grid)
    whole = math.prod(sizes) == parameter.numel() and strides == row_major(sizes)
    if whole and sizes != parameter.shape:  # no mistaking it for the parameter as it stands
        sizes, strides = (1, *sizes), (parameter.numel(), *strides)
    names = tuple(
        other
        for other, p in origins.parameters.items()
        if origins.starts[other] == origins.starts[name]
        and p.shape == parameter.shape
        and p.stride() == parameter.stride()
    )
    return Part(start, grid.sizes[0] * grid.sizes[1], Place(names, sizes, strides, offset))


def _owner(origins: Origins, number: int) -> tuple[str, int]:
    """The parameter with the element of this number, and the number of its first."""
    starts = origins.in_order()
    start, name = starts[bisect_right(starts, (number, "\U0010ffff")) - 1]
    return name, start


def _in_order(grid: _Grid, base: int, parameter: Tensor) -> _Grid:
    """The same elements as numbers in the row-major order of a parameter that is stored in another
    one (channels last)."""
    reach = 1 + sum((n - 1) * s for n, s in zip(parameter.shape, parameter.stride(), strict=True))
    order = torch.full((reach,), -1)
    order.as_strided(parameter.shape, parameter.stride(), 0).copy_(
        torch.arange(parameter.numel()).reshape(parameter.shape)
    )
    return _regular(order.as_strided(grid.sizes, grid.strides, grid.first - base))


def _regular(numbers: Tensor) -> _Grid:
    """Numbers [groups, rows, ...] as a grid."""
    first = int(numbers[(0,) * numbers.dim()])
    strides = []
    expected = torch.tensor(first)
    for d, size in enumerate(numbers.shape):
        stride = int(numbers.select(d, 1)[(0,) * (numbers.dim() - 1)]) - first if size > 1 else 0
        strides.append(stride)
        shape = [-1 if e == d else 1 for e in range(numbers.dim())]
        expected = expected + (torch.arange(size) * stride).reshape(shape)
    if min(strides) < 0 or not torch.equal(expected, numbers):
        raise IrregularError("its values are a parameter's in another order")
    return _Grid(first, tuple(numbers.shape), tuple(strides))


def _one_to_one(grid: _Grid) -> bool:
    reach = 0
    for stride, size in sorted(zip(grid.strides, grid.sizes, strict=True)):
        if size > 1:
            if stride <= reach:
                return False
            reach += stride * (size - 1)
    return True


def _joined(grid: _Grid) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides with groups and rows as one dimension where they follow each other evenly;
    a dimension of one element has the stride of a contiguous tensor."""
    (groups, rows, *rest), (apart, *steps) = grid.sizes, grid.strides
    even = groups == 1 or rows == 1 or apart == rows * steps[0]
    if even:
        sizes = (groups * rows, *rest)
        strides = (apart if rows == 1 else steps[0], *steps[1:])
    else:
        sizes, strides = grid.sizes, grid.strides
    plain = row_major(sizes)
    return sizes, tuple(s if n > 1 else p for n, s, p in zip(sizes, strides, plain, strict=True))


def _cut(part: Part, cuts: Cuts) -> list[Part]:
    """The part in pieces where its parameter's rows are cut and are rows of the matrix too."""
    place = part.place
    edges = cuts(place.parameters[0])
    if not edges or len(place.sizes) != 2 or place.strides != row_major(place.sizes):
        return [part]
    columns = place.strides[0]
    first = place.offset // columns
    inside = [edge - first for edge in edges if 0 < edge - first < part.rows]
    pieces = []
    for start, stop in zip([0, *inside], [*inside, part.rows], strict=True):
        rows = stop - start
        sizes, offset = (rows, *place.sizes[1:]), place.offset + start * columns
        own = Place(place.parameters, sizes, row_major(sizes), offset)
        pieces.append(Part(part.start + start, rows, own))
    return pieces
