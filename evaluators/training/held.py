"""Training that holds what compression made: zeros stay zero, and quantized weights stay on their
grids, to the bit.

A held layer's weight is made anew at each step from a free one: times its mask, and rounded to its
grid, whose scales learn along (learned step sizes: Esser et al. 2020, "LSQ", equations 1 to 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from apportion.compressors.grids import Grid
from apportion.compressors.place import Place, row_major

_LEAST = 1e-8
"""A scale does not shrink below it."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What is held of a layer's weight: where it may be other than zero (bool, its shape; None:
    everywhere), and its grid, whose scales learn or are held too (those of weight formats, which
    are rounded themselves, are held). `place`: where it stands in the
    model; None: it is the whole `weight` of the module that has its name. `shape`: of the layer,
    (rows, channels, *kernel), where it has a place."""

    mask: Tensor | None = None
    grid: Grid | None = None
    learn: bool = True
    place: Place | None = None
    shape: tuple[int, ...] = ()

    def where(self, parameter: Tensor) -> tuple[Place, tuple[int, ...]]:
        """Its place in the parameter, and its shape."""
        if self.place is not None:
            return self.place, self.shape
        own = tuple(parameter.shape)
        return Place((), own, row_major(own)), own


@contextmanager
def held(model: nn.Module, what: Mapping[str, Hold]) -> Iterator[dict[str, Grid]]:
    """Inside, the layers named train as their Hold says, with all that share their weights; when
    the block ends, whether by an error or not, weights are plain again, and shared ones still
    shared. The grids that they lie on then are in the dictionary."""
    grids: dict[str, Grid] = {}
    begun: list[tuple[_Held | _Parts, list[tuple[nn.Module, str]]]] = []
    try:
        for parameter, parts in _by_parameter(model, what):
            made = _made(parameter, parts)
            begun.append((made, []))
            places = [
                (module, own)
                for module in model.modules()
                for own, value in module._parameters.items()
                if value is parameter
            ]
            for module, own in places:
                parametrize.register_parametrization(module, own, made)
                begun[-1][1].append((module, own))
        yield grids
    finally:
        for made, sharing in begun:
            if not sharing:
                continue  # it could not begin, which is told
            first, name = sharing[0]
            weight = made.final(getattr(first, name).detach().clone(), grids)
            for module, own in sharing:
                parametrize.remove_parametrizations(module, own)
            with torch.no_grad():
                getattr(first, name).copy_(weight)


def _made(parameter: Tensor, parts: Mapping[str, Hold]) -> _Held | _Parts:
    """What stands in for a parameter."""
    (name, hold), *others = parts.items()
    if others or hold.place is not None:
        return _Parts(parameter, parts)
    return _Held(name, parameter, hold)


def owner(name: str, place: Place | None) -> str:
    """The name of the module that has a layer's parameter."""
    return name if place is None else place.parameters[0].rpartition(".")[0]


def _by_parameter(
    model: nn.Module, what: Mapping[str, Hold]
) -> Iterator[tuple[nn.Parameter, dict[str, Hold]]]:
    """Each parameter with the layers that are parts of it."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[int, tuple[nn.Parameter, dict[str, Hold]]] = {}
    for name, hold in what.items():
        path = f"{name}.weight" if hold.place is None else hold.place.parameters[0]
        parameter = parameters[path]
        found.setdefault(id(parameter), (parameter, {}))[1][name] = hold
    yield from found.values()


class _Held(nn.Module):
    mask: Tensor | None
    zero: Tensor

    def __init__(self, name: str, weight: Tensor, hold: Hold) -> None:
        super().__init__()
        self._name = name
        self.register_buffer("mask", None if hold.mask is None else hold.mask.to(weight.device))
        self._bits, self._fixed = 0, None
        if hold.grid is not None and not hold.grid.plain:
            self._fixed = hold.grid.to(weight.device)
        elif hold.grid is not None:
            self._bits = hold.grid.bits
            self.scale = nn.Parameter(hold.grid.scale.to(weight).clone(), requires_grad=hold.learn)
            self.register_buffer("zero", hold.grid.zero.to(weight).clone())
            self._slow = (weight.numel() / len(hold.grid.scale) * (2**self._bits - 1)) ** -0.5

    def forward(self, weight: Tensor) -> Tensor:
        if self._bits:
            scale = self._scale()
            scale = scale + (self._slow - 1) * (
                scale - scale.detach()
            )  # its gradient alone is scaled (section 2.2)
            codes = _Codes.apply(weight.flatten(1) / scale, self.zero, 2**self._bits - 1)
            weight = (scale * (codes - self.zero)).reshape(weight.shape)
        elif self._fixed is not None:
            matrix = weight.movedim(1, -1)
            near = _Nearest.apply(matrix.flatten(1), self._fixed).reshape(matrix.shape)
            weight = near.movedim(-1, 1)
        return weight if self.mask is None else weight * self.mask

    def final(self, weight: Tensor, grids: dict[str, Grid]) -> Tensor:
        """The weight as it is stored; its grid goes into `grids`."""
        if self._fixed is not None:
            grids[self._name] = grid = self._fixed.cpu()
            matrix = weight.movedim(1, -1).float().cpu()
            near = grid.values(grid.codes(matrix.flatten(1))).reshape(matrix.shape)
            return near.movedim(-1, 1).to(weight)
        if not self._bits:
            return weight
        grid = Grid(self._scale().detach().float().cpu(), self.zero.float().cpu(), self._bits)
        flat = weight.flatten(1).float().cpu()
        grids[self._name] = grid
        return grid.values(grid.codes(flat)).reshape(weight.shape).to(weight)

    def _scale(self) -> Tensor:
        return self.scale.abs().clamp(min=_LEAST)


class _Codes(torch.autograd.Function):
    """weight / scale -> codes; straight through as far as half a step beyond the grid's ends:
    weights that begin on the grid could not leave its ends otherwise."""

    @staticmethod
    def forward(context: Any, ratio: Tensor, zero: Tensor, top: int) -> Tensor:
        codes = ratio.round() + zero
        context.save_for_backward((codes >= 0) & (codes <= top))
        return codes.clamp(0, top)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = context.saved_tensors
        return gradient * inside, None, None


class _Nearest(torch.autograd.Function):
    """Weights [rows, d] -> the nearest on a grid whose scales stay as they are; straight through,
    half a step beyond its ends too."""

    @staticmethod
    def forward(context: Any, weight: Tensor, grid: Grid) -> Tensor:
        near = grid.nearest(weight)
        context.save_for_backward((near - weight).abs() <= grid.steps(weight).abs() / 2)
        return near

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (inside,) = context.saved_tensors
        return gradient * inside, None


class _Parts(nn.Module):
    """A parameter of which parts are held. They are taken out and put back by their elements'
    numbers: the gradient of torch.as_strided_scatter is wrong (torch 2.14: zero)."""

    def __init__(self, parameter: Tensor, parts: Mapping[str, Hold]) -> None:
        super().__init__()
        whole = parameter.contiguous().flatten()
        numbers = torch.arange(parameter.numel(), device=parameter.device)
        self._shapes, self._at, made = [], [], []
        for name, hold in parts.items():
            place, shape = hold.where(parameter)
            at = place.of(numbers).flatten()
            made.append(_Held(name, whole[at].reshape(shape), hold))
            self._shapes.append(shape)
            self._at.append(at)
        self.held = nn.ModuleList(made)

    def forward(self, weight: Tensor) -> Tensor:
        flat = weight.flatten()
        for at, shape, part in zip(self._at, self._shapes, self.held, strict=True):
            flat = flat.scatter(0, at, part(flat[at].reshape(shape)).flatten())
        return flat.reshape(weight.shape)

    def final(self, weight: Tensor, grids: dict[str, Grid]) -> Tensor:
        """As `_Held.final`."""
        flat = weight.flatten()
        for at, shape, part in zip(self._at, self._shapes, self.held, strict=True):
            assert isinstance(part, _Held)
            flat[at] = part.final(flat[at].reshape(shape), grids).flatten()
        return flat.reshape(weight.shape)
