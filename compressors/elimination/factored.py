"""ExactOBS in the factored form of `removal`, in plain torch: all rows at once, on any device. What
runs on a GPU, and where no compiler is.

All take weight [rows, d] and hinv [d, d] (H^-1) of one floating type; ties go to the lowest column.
Once B is a row's own, rows x d x d values are held: the caller cuts the rows into chunks that fit
its memory. On the CPU few rows go at a time, so that their U stays in the cache, and all in the
same memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from apportion.compressors.grids import Grid

_CACHED = 1 << 23
"""Values of U that the CPU's cache is expected to hold."""

_STRIP, _PRODUCT = 256, 1 << 20
"""Rows of B that one matrix product updates on the CPU at least, and about as many values where it
has memory of its own."""


class _Space:
    """Memory by name, taken anew only to grow, as fresh pages cost time of their own."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Uninitialised, or what was there before."""
        size = math.prod(shape)
        if name not in self._held or len(self._held[name]) < size:
            self._held[name] = like.new_empty(size)
        return self._held[name][:size].view(shape)


class Rows:
    """The state of all rows: H^-1_t = B - U^T U over the columns that are left (`column` [rows, m]
    says which), in order. `penalty` is inf in a column that is gone and not dropped yet, whose w,
    diagonal and U are 0, 1 and 0 up to rounding, and 0 elsewhere. `first` + position is the place
    in a flat [rows, m]."""

    def __init__(
        self, weight: Tensor, hinv: Tensor, extra: int = 0, space: _Space | None = None
    ) -> None:
        rows, d = weight.shape
        self.w = weight.clone(memory_format=torch.contiguous_format)  # the kernel reads row by row
        self.every = torch.arange(rows, device=weight.device)
        self.diagonal = hinv.diagonal().repeat(rows, 1)
        self.penalty = torch.zeros_like(self.w)
        self.column = torch.arange(d, device=weight.device).repeat(rows, 1)
        self._shared: Tensor | None = hinv
        self._own = weight.new_empty(0)
        self._extra, self._space, self._on_cpu = (
            extra,
            space or _Space(),
            weight.device.type == "cpu",
        )
        self._begin(d)

    def _begin(self, m: int) -> None:
        """Start to collect U anew; a refresh is due after near 2 sqrt(m) steps where memory is the
        limit, later where products gain from a larger share; `extra` steps may come late."""
        self.period, self.step = max(16, int((5 if self._on_cpu else 2) * math.sqrt(m))), 0
        self.first = self.every * m
        self.u = self._space.take("u", self.w, len(self.w), self.period + self._extra, m)

    @property
    def base(self) -> Tensor:
        """B: [d, d] while all rows share it, [rows, m, m] then."""
        return self._own if self._shared is None else self._shared

    @property
    def gone(self) -> Tensor:
        """Positions that were removed, or that no row has; bool [rows, m]."""
        return self.penalty > 0

    def remove(self, p: Tensor, change: Tensor, acting: Tensor | None = None) -> Tensor:
        """Lower the weight at position p [rows] by `change` [rows] and take its column out; the
        weights that are left make up for it (eq. 3, lemma 1). Rows that are not `acting` stay as
        they are. Returns the new row of U, [rows, m]."""
        at = self.first + p
        shared, m = self._shared, self.w.shape[1]
        row = (
            self._own.view(-1, m).index_select(0, at)
            if shared is None
            else shared.index_select(0, p)
        )
        if self.step:
            earlier = self.u[:, : self.step]
            factors = earlier.gather(2, p[:, None, None].expand(-1, self.step, 1))
            row.sub_(torch.bmm(factors.mT, earlier).squeeze(1))
        root = self.diagonal.view(-1).index_select(0, at).sqrt_()
        row.div_(root[:, None])
        if acting is not None:
            row.mul_(acting[:, None])
            at = at[acting]
        self.w.addcmul_(row, (change / root)[:, None], value=-1)
        self.diagonal.addcmul_(row, row, value=-1)
        self.diagonal.view(-1).index_fill_(0, at, 1)
        self.penalty.view(-1).index_fill_(0, at, torch.inf)
        self.u[:, self.step] = row
        self.step += 1
        return row

    def values(self, state: Tensor, p: Tensor) -> Tensor:
        """Those of `state` [rows, m] at position p [rows]."""
        return state.view(-1).index_select(0, self.first + p)

    def refresh(self) -> Tensor | None:
        """Fold U into B, and drop what is gone, on a GPU only when that is a fifth. Returns the old
        positions that stay [rows, m], where they changed."""
        m = self.w.shape[1]
        gone = self.gone
        left = m - int(gone.sum(1).min())
        keep: Tensor | None = None
        u = self.u[:, : self.step]
        if self._on_cpu or self._shared is not None or left <= 0.8 * m:
            keep = gone.to(torch.int8).argsort(dim=1, stable=True)[:, :left].sort(1).values
            self._own, self._shared = self._inner(keep), None
            u = u.gather(2, keep[:, None, :].expand(-1, self.step, -1))
            self.w, self.diagonal, self.penalty, self.column = (
                t.gather(1, keep) for t in (self.w, self.diagonal, self.penalty, self.column)
            )
        if self._on_cpu and self.w.shape[1] > _STRIP:
            for own, each in zip(self._own, u, strict=True):
                _fold(own, each)
        else:
            self._own.baddbmm_(u.mT, u, alpha=-1)
        self._begin(self.w.shape[1])
        return keep

    def _inner(self, keep: Tensor) -> Tensor:
        """Rows and columns keep [rows, left] of B, one choice a row: [rows, left, left]."""
        rows, left = keep.shape
        every = self.base.expand(rows, -1, -1)
        m = every.shape[-1]
        if not self._on_cpu:
            inner = every.gather(1, keep[:, :, None].expand(-1, -1, m))
            return inner.gather(2, keep[:, None, :].expand(-1, left, -1))
        inner = self._space.take("own", self.w, rows, left, left)
        across = self._space.take("across", self.w, left, m)
        for own, kept, to in zip(
            every, keep, inner, strict=True
        ):  # `to` ends before the next `own` begins
            torch.index_select(own, 0, kept, out=across)
            torch.index_select(across, 1, kept, out=to)
        return inner


def _fold(own: Tensor, u: Tensor) -> None:
    """B [m, m] -= U^T U for U [steps, m]: the lower triangle strip by strip, and its reflection. In
    single precision by oneDNN, whose products use the widest vectors of every CPU, where MKL's
    leave them out on some."""
    m, wide = len(own), own.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    columns = u.T.contiguous() if wide else u.T
    height = max(_STRIP, _PRODUCT // m) if wide else _STRIP
    for start in range(0, m, height):
        stop = min(m, start + height)
        strip = own[start:stop, :stop]
        if wide:
            strip.sub_(
                functional.linear(
                    columns[start:stop].to_mkldnn(), columns[:stop].to_mkldnn()
                ).to_dense()
            )
        else:
            strip.addmm_(columns[start:stop], u[:, :stop], alpha=-1)
        own[:start, start:stop].copy_(strip[:, :start].T)


def _parts(weight: Tensor, hinv: Tensor, extra: int = 0) -> Iterator[tuple[slice, Rows]]:
    """The rows that are worked on at a time: which, and their state."""
    on_cpu, space = weight.device.type == "cpu", _Space()
    size = max(8, int(_CACHED / (5 * weight.shape[1] ** 1.5))) if on_cpu else max(1, len(weight))
    size = math.ceil(len(weight) / math.ceil(len(weight) / size))  # of equal parts
    for start in range(0, len(weight), size):
        part = slice(start, start + size)
        yield part, Rows(weight[part], hinv, extra, space)


def eliminate(weight: Tensor, hinv: Tensor) -> tuple[Tensor, Tensor]:
    """As `textbook.eliminate`."""
    order, losses = torch.empty_like(weight, dtype=torch.int64), torch.empty_like(weight)
    for part, rows in _parts(weight, hinv):
        for turn in range(weight.shape[1]):
            lowest, p = torch.addcdiv(rows.penalty, rows.w * rows.w, rows.diagonal).min(1)
            order[part, turn], losses[part, turn] = rows.values(rows.column, p), lowest / 2
            rows.remove(p, rows.values(rows.w, p))
            if rows.step == rows.period:
                rows.refresh()
    return order, losses


def eliminate_blocks(weight: Tensor, hinv: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """As `textbook.eliminate_blocks`."""
    blocks = weight.shape[1] // size
    order, losses = (
        weight.new_empty(len(weight), blocks, dtype=torch.int64),
        weight.new_empty(len(weight), blocks),
    )
    pairs = hinv.reshape(blocks, size, blocks, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    eye = torch.eye(size, dtype=weight.dtype, device=weight.device)
    for part, rows in _parts(weight, hinv, size):
        count = len(rows.w)
        inner = pairs.repeat(count, 1, 1, 1)  # the diagonal blocks of H^-1_t
        for turn in range(blocks):
            gone = rows.gone[:, ::size]
            factor = torch.linalg.cholesky(torch.where(gone[:, :, None, None], eye, inner))
            y = torch.linalg.solve_triangular(
                factor, rows.w.reshape(count, -1, size, 1), upper=False
            )
            lowest, b = (y**2).sum((2, 3)).masked_fill(gone, torch.inf).min(1)
            order[part, turn], losses[part, turn] = (
                rows.values(rows.column, b * size) // size,
                lowest / 2,
            )
            for i in range(size):
                p = b * size + i
                row = rows.remove(p, rows.values(rows.w, p)).reshape(count, -1, size)
                inner -= row[:, :, :, None] * row[:, :, None, :]
            if rows.step >= rows.period and (keep := rows.refresh()) is not None:
                inner = inner[rows.every[:, None], keep[:, ::size] // size]
    return order, losses


def prune_n_of_m(weight: Tensor, hinv: Tensor, n: int, m: int) -> Tensor:
    """As `textbook.prune_n_of_m`."""
    result = torch.zeros_like(weight)
    for part, rows in _parts(weight, hinv):
        left = torch.full((len(rows.w), weight.shape[1] // m), m, device=weight.device)
        for _ in range(weight.shape[1] // m * (m - n)):
            score = torch.addcdiv(rows.penalty, rows.w * rows.w, rows.diagonal)
            p = score.masked_fill_(left.gather(1, rows.column // m) <= n, torch.inf).argmin(1)
            left[rows.every, rows.values(rows.column, p) // m] -= 1
            rows.remove(p, rows.values(rows.w, p))
            if rows.step == rows.period:
                rows.refresh()
        result[part].scatter_(1, rows.column, rows.w.masked_fill(rows.gone, 0))
    return result


def quantize(weight: Tensor, hinv: Tensor, grid: Grid, fixed: Tensor) -> Tensor:
    """As `textbook.quantize`."""
    result = torch.zeros_like(weight)
    for part, rows in _parts(weight, hinv):
        _quantize(rows, grid.rows(part), fixed[part], result[part])
    return result


def _quantize(rows: Rows, grid: Grid, fixed: Tensor, result: Tensor) -> None:
    still = fixed.sum(1)
    for turn in range(
        int(still.max())
    ):  # the columns that stay zero leave H^-1 first, and move nothing
        stays = fixed.gather(1, rows.column) & ~rows.gone
        rows.remove(stays.to(torch.int8).argmax(1), torch.zeros_like(rows.w[:, 0]), turn < still)
        if rows.step == rows.period:
            rows.refresh()
    active = fixed.shape[1] - still
    own = grid.at(rows.column)
    for turn in range(int(active.max())):
        near = own.nearest(rows.w)
        error = (near - rows.w).square_()
        far = (error - rows.penalty).where(error > own.steps(rows.w) ** 2 / 4, -torch.inf)
        farthest, within = (
            far.argmax(1),
            torch.addcdiv(rows.penalty, error, rows.diagonal).argmin(1),
        )
        outlier = rows.values(far, farthest) > 0
        p = torch.where(outlier, farthest, within)
        acting = turn < active
        to = rows.values(near, p)
        result[rows.every[acting], rows.values(rows.column, p)[acting]] = to[acting]
        rows.remove(p, rows.values(rows.w, p) - to, acting)
        if rows.step == rows.period:
            rows.refresh()
            own = grid.at(rows.column)
