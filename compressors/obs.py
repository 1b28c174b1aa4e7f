"""One layer at all its levels: by ExactOBS (Frantar & Alistarh 2022, "Optimal Brain Compression"),
by magnitude or to nearest, or in the order of the columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apportion.compressors import formats, magnitude
from apportion.compressors.activations import ActivationGrid, InputGrid, TokenGrid
from apportion.compressors.elimination import dispatch
from apportion.compressors.elimination.dispatch import Limits
from apportion.compressors.elimination.ladder import Ladder
from apportion.compressors.elimination.work import Group, Mapper, Work, default_memory, precision
from apportion.compressors.errors import LayerError, LevelError
from apportion.compressors.grids import Grid, fit_weights
from apportion.compressors.hessian import inverse
from apportion.compressors.in_order import InOrder, Order
from apportion.compressors.layers import LayerSpec, from_matrix, to_matrix
from apportion.compressors.levels import Level, Quantization, Sparsity
from apportion.compressors.lookup import TableProblem
from apportion.compressors.options import CompressionOptions
from apportion.compressors.progress import Progress, silent
from apportion.compressors.settle import settle
from apportion.compressors.threads import torch_threads

_INFLATION = 1e4
"""Variance inflation that single precision bears: beyond it, rounding errors grow from step to step
until ExactOBS is worse than rounding to nearest (fewer samples than columns do that)."""


@dataclass(frozen=True, slots=True)
class CompressedLayer:
    """One layer at one level. `weight`: float32, the layer's own shape; `error` = 1/2 tr(dW H dW^T)
    in float64, and `normalized_error` the same over 1/2 tr(W H W^T): lower is better, 0 for dense;
    they count the weights alone. `grid`: of quantized weights, per row or [1, 1]; `activation`: of
    quantized inputs."""

    level: Level
    weight: Tensor
    error: float
    normalized_error: float
    grid: Grid | None = None
    activation: InputGrid | None = None


def fits(spec: LayerSpec, level: Level) -> bool:
    """Whether the layer can have the level: blocks, N:M patterns and groups of columns that share
    a scale need rows that they divide.
    Inputs can be quantized where they are a module's, token by token where that is linear. A filter
    level leaves at least one filter, and a module that can be run as such: among grouped
    convolutions that is true of depthwise ones alone."""
    sparsity = level.sparsity
    if level.channels:  # of a group, not of a layer
        return False
    if level.activation_bits and not spec.by_module:
        return False
    if level.activation_bits and not level.static_bits and spec.kind != "linear":
        return False
    form = formats.find(level.quantization.format) if level.quantization else None
    if form is not None and form.block and spec.columns % form.block:
        return False
    if sparsity is not None and sparsity.kind == "filter":
        shaped = spec.is_module_weight and spec.groups in (1, spec.rows)
        return shaped and sparsity.removed(spec.rows) < spec.rows
    return (
        sparsity is None
        or spec.columns % {"block": sparsity.block, "nm": sparsity.m}.get(sparsity.kind, 1) == 0
    )


def compress_layer(
    weight: Tensor,
    spec: LayerSpec,
    hessian: Tensor,
    levels: Sequence[Level],
    options: CompressionOptions | None = None,
    activations: Mapping[int, ActivationGrid] | None = None,
    progress: Progress = silent,
    mapper: Mapper | None = None,
) -> Iterator[CompressedLayer]:
    """Compress one layer to many levels; one elimination gives all levels of a kind.

    Args:
        weight: [rows, ...], in the layer's shape.
        spec: the layer.
        hessian: as `hessian.collect_hessians` gives it; its device does the work.
        levels: those that fit the layer are made.
        options: of the compressor.
        activations: bits -> grid, for levels that quantize inputs.
        progress: told of tasks.
        mapper: runs the tasks that the layer is cut into; by default one after the other, here.

    Yields:
        The layer at each level that fits it, in their order.

    Raises:
        LayerError: weights or Hessian are not finite.
        LevelError: a level quantizes inputs, and its grid is missing.
    """
    for level in levels:
        if level.static_bits and level.static_bits not in (activations or {}):
            raise LevelError(
                str(level),
                f"no grid of {level.static_bits} bits was calibrated for the inputs of "
                f"{spec.name!r}",
            )
    options = options or CompressionOptions()
    matrix = to_matrix(weight.detach().to(hessian.device).double(), spec)
    if not torch.isfinite(matrix).all():
        raise LayerError(spec.name, "its weights hold NaN or infinity")
    if not torch.isfinite(hessian).all():
        raise LayerError(spec.name, "its Hessian holds NaN or infinity")
    limits = Limits(options.memory or default_memory(hessian.device), torch.get_num_threads())
    work = Work(limits, mapper, progress, f"compress {spec.name}")
    fitting = [level for level in levels if fits(spec, level)]
    problem = (
        TableProblem(matrix, hessian.double(), options.grid)
        if spec.is_table
        else _Problem(matrix, hessian.double(), spec, fitting, options, work)
    )
    whole = 0.0
    for level in fitting:
        with torch_threads(1):  # the bits of a database do not depend on how many threads made it
            whole = whole or layer_error(matrix, problem.hessian)
            stored, grid = problem.weights(level)
            error = layer_error(stored.double() - matrix.float().double(), problem.hessian)
        activation: InputGrid | None = None
        if activations and level.static_bits:
            activation = activations[level.static_bits]
        elif level.activation_bits:
            activation = TokenGrid(level.activation_bits)
        relative = error / whole if whole > 0 else 0.0
        yield CompressedLayer(
            level,
            from_matrix(stored, spec).cpu(),
            error,
            relative,
            None if grid is None else grid.cpu(),
            activation,
        )


def layer_error(difference: Tensor, hessian: Tensor) -> float:
    """1/2 tr(dW H dW^T) over all groups; difference [rows, d], hessian [groups, d, d], float64. For
    H = 2 X X^T / N it is the mean over samples of the squared change of the layer's output."""
    if hessian.dim() == 2:  # a table's
        return 0.5 * float((hessian * difference**2).sum())
    groups = hessian.shape[0]
    split = difference.reshape(groups, -1, difference.shape[1])
    return 0.5 * float(((split @ hessian) * split).sum())


class _Problem:
    """One layer and what its levels share: an elimination run gives all levels of its kind."""

    def __init__(
        self,
        matrix: Tensor,
        hessian: Tensor,
        spec: LayerSpec,
        levels: Sequence[Level],
        options: CompressionOptions,
        work: Work,
    ) -> None:
        self.matrix, self.hessian, self._spec, self._options, self._work = (
            matrix,
            hessian,
            spec,
            options,
            work,
        )
        self._ladders: dict[int, Ladder] = {}
        self._groups: list[Group] = []
        sparsities = [
            level.sparsity
            for level in levels
            if level.sparsity and not level.sparsity.magnitude and not level.sparsity.fixed
        ]
        self._counts: dict[int, list[int]] = {}
        for sparsity in sparsities:
            if sparsity.kind in ("unstr", "block"):
                self._counts.setdefault(sparsity.block or 1, []).append(self._count(sparsity))
        self._wanted = Counter(_same_weights(level) for level in levels)
        self._shared: dict[tuple[object, ...], tuple[Tensor, Grid | None]] = {}
        self._patterned = Counter(key[0] for key in self._wanted)
        self._patterns: dict[Sparsity, Tensor] = {}
        self._fixed: dict[Order, InOrder] = {}

    def weights(self, level: Level) -> tuple[Tensor, Grid | None]:
        """What is stored, float32 [rows, d], and its grid. Levels that differ in their inputs' bits
        alone share it."""
        key = _same_weights(level)
        made = self._shared.pop(key, None) or self._make(level)
        self._wanted[key] -= 1
        if self._wanted[key]:
            self._shared[key] = made
        return made

    def _make(self, level: Level) -> tuple[Tensor, Grid | None]:
        compressed = self.matrix if level.sparsity is None else self._sparse(level.sparsity)
        quantization = level.quantization
        if quantization is None or quantization.weight_bits is None:
            return compressed.float(), None
        fixed = (
            torch.zeros_like(compressed, dtype=torch.bool)
            if level.sparsity is None
            else compressed == 0
        )
        grid = fit_weights(compressed, quantization, self._options.grid)
        if quantization.fixed:
            order: Order = "descending" if quantization.descending else "columns"
            compressed, grid = self._in_order(order).quantize(
                compressed,
                grid,
                fixed,
                None
                if quantization.descending
                else lambda own, like: fit_weights(own, quantization, self._options.grid, like),
            )
        elif not quantization.nearest:
            compressed = self._quantize(compressed, grid, fixed)
        return grid.values(grid.codes(compressed)) * ~fixed, grid

    def _count(self, sparsity: Sparsity) -> int:
        return sparsity.removed(self.matrix.numel() // (sparsity.block or 1))

    def _sparse(self, sparsity: Sparsity) -> Tensor:
        """The weights [rows, d] with the pattern of `sparsity`."""
        if sparsity.fixed:
            return self._in_order("columns").prune(self.matrix, sparsity)
        if sparsity.kind == "nm":
            if sparsity.magnitude:
                return magnitude.prune_n_of_m(self.matrix, sparsity.n, sparsity.m)
            made = self._patterns.pop(sparsity, None)
            if made is None:
                made = self._by_rows(
                    self.matrix, _prune_n_of_m, lambda _rows: (sparsity.n, sparsity.m)
                )
            self._patterned[sparsity] -= 1
            if self._patterned[sparsity]:  # with other weight bits
                self._patterns[sparsity] = made
            return made
        if sparsity.kind == "filter":
            return self._filters(sparsity)
        size = sparsity.block or 1
        if sparsity.magnitude:
            return magnitude.prune_blocks(self.matrix, size, self._count(sparsity))
        if size not in self._ladders:
            self._ladders[size] = Ladder(self._inverted(), size, self._counts[size], self._work)
        return self._ladders[size].without(self._count(sparsity))

    def _in_order(self, order: Order) -> InOrder:
        """What eliminates in one order for all rows."""
        if order not in self._fixed:
            damping, name = self._options.damping, self._spec.name
            self._fixed[order] = InOrder(self.hessian, order, damping, name)
        return self._fixed[order]

    def _filters(self, sparsity: Sparsity) -> Tensor:
        """Without the rows whose errors w H w^T / 2 are least. Rows do not act on each other's
        outputs, so that none can make up for another, and this is the optimum."""
        grouped = self.matrix.reshape(len(self.hessian), -1, self.matrix.shape[1])
        changed = grouped if sparsity.magnitude else grouped @ self.hessian
        rises = (changed * grouped).sum(2).flatten()
        kept = self.matrix.clone()
        kept[rises.argsort(stable=True)[: sparsity.removed(len(kept))]] = 0
        return kept

    def _quantize(self, matrix: Tensor, grid: Grid, fixed: Tensor) -> Tensor:
        """Weights [rows, d] on the grid: by OBQ, and in the order from the greatest inputs down,
        both settled. Zeros that are `fixed` stay zeros, and only the weights that are left
        compensate."""
        own = self._by_rows(matrix, _quantize, lambda rows: (grid.rows(rows), fixed[rows]))
        down, _ = self._in_order("descending").quantize(matrix, grid, fixed, None)
        options, limits = self._options, self._work.limits
        starts = (own, down)
        return settle(matrix, starts, self.hessian, grid, fixed, options.damping, limits)

    def _by_rows(
        self,
        matrix: Tensor,
        function: Callable[..., Tensor],
        arguments: Callable[[slice], tuple[object, ...]],
    ) -> Tensor:
        """function(weights, H^-1, *arguments(rows), limits) over all rows, a few at a time."""
        tasks, start = [], 0
        for group in self._inverted():
            end, step = start + len(group.weight), self._work.rows_at_once(group)
            for at in range(start, end, step):
                rows = slice(at, min(end, at + step))
                weight = matrix[rows].to(group.hinv.dtype) * group.alive
                tasks.append((weight, group.hinv, *arguments(rows), self._work.limits))
            start = end
        return torch.cat(list(self._work.map(function, tasks)))

    def _inverted(self) -> list[Group]:
        """Weights and H^-1 of every group, in the precision of the layer's width. The inverse is
        taken in double precision: it dominates the rounding error. A dead column has the identity's
        row and column, and its weights are zero: it costs nothing and changes nothing."""
        if not self._groups:
            dtype = precision(self.matrix.shape[1])
            for weight, hessian in zip(
                self.matrix.chunk(self._spec.groups), self.hessian, strict=True
            ):
                most = _INFLATION if dtype == torch.float32 else math.inf
                found, alive = inverse(hessian, self._options.damping, self._spec.name, most)
                whole = torch.eye(len(alive), dtype=dtype, device=found.device)
                columns = alive.nonzero().squeeze(1)
                whole[columns[:, None], columns] = found.to(dtype)
                self._groups.append(Group((weight * alive).to(dtype), whole, alive))
        return self._groups


def _same_weights(level: Level) -> tuple[object, ...]:
    quantization = level.quantization or Quantization(None)
    return level.sparsity, quantization.weights, quantization.how


def _prune_n_of_m(weight: Tensor, hinv: Tensor, n: int, m: int, limits: Limits) -> Tensor:
    return _finite(lambda w, h: dispatch.prune_n_of_m(w, h, n, m, limits), weight, hinv)


def _quantize(weight: Tensor, hinv: Tensor, grid: Grid, fixed: Tensor, limits: Limits) -> Tensor:
    return _finite(lambda w, h: dispatch.quantize(w, h, grid, fixed, limits), weight, hinv)


def _finite(run: Callable[[Tensor, Tensor], Tensor], weight: Tensor, hinv: Tensor) -> Tensor:
    """In double precision where single breaks down on a Hessian that is nearly singular."""
    result = run(weight, hinv)
    return result if torch.isfinite(result).all() else run(weight.double(), hinv.double())
