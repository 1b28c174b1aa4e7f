"""Where the layers of a build are compressed: in this process, or on Ray workers, whole layers side by side, and a layer that
outweighs the others a few rows a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from compressors.activations import ActivationGrid
from compressors.elimination import Limits
from compressors.layers import LayerSpec
from compressors.levels import Level
from compressors.obs import CompressionOptions, compress_layer
from compressors.progress import Progress
from compressors.work import Mapper
from db import codec, format
from db.cluster import Session
from db.format import Entry

Encoded = tuple[dict[str, Tensor], tuple[Entry, ...]]
"""A layer as its file holds it: encoded parts by key, and the entries in the order of their levels."""


@dataclass(frozen=True)
class LayerTask:
    """All that compressing one layer takes. `index` is its place in the model."""

    index: int
    layer: LayerSpec
    weight: Tensor
    hessian: Tensor
    levels: tuple[Level, ...]
    options: CompressionOptions
    activations: dict[int, ActivationGrid]

    @property
    def work(self) -> float:
        """Roughly proportional to the time that one elimination of the layer takes."""
        return float(self.layer.rows) * self.layer.columns**3

    def run(self, progress: Progress | None = None, mapper: Mapper | None = None) -> Encoded:
        made = compress_layer(
            self.weight, self.layer, self.hessian, self.levels, self.options, self.activations, progress, mapper
        )
        return encode(made)


class Fanout(Protocol):
    def run(self, tasks: Sequence[LayerTask], progress: Progress | None) -> Iterator[tuple[LayerTask, Encoded]]:
        """Every task with its result, as they finish."""

    def close(self) -> None: ...


class InProcess:
    """One layer after the other, here."""

    def run(self, tasks: Sequence[LayerTask], progress: Progress | None) -> Iterator[tuple[LayerTask, Encoded]]:
        for task in tasks:
            yield task, task.run(progress)

    def close(self) -> None:
        pass


class RayWorkers:
    """`count` Ray tasks at a time, of `cpus` threads each. The result is the same to the bit as in one process."""

    def __init__(self, count: int, cpus: int) -> None:
        self._session = Session(count, cpus, 0)
        self._ray = self._session.ray
        self._count = count
        self._task = self._ray.remote(num_cpus=cpus, max_retries=3)(_on_worker).options(name="apportion build")
        self._threads = cpus

    def run(self, tasks: Sequence[LayerTask], progress: Progress | None) -> Iterator[tuple[LayerTask, Encoded]]:
        total = sum(task.work for task in tasks)
        shared = [task for task in tasks if task.work * self._count > total and self._count > 1]
        waiting = [task for task in tasks if task not in shared]
        flying: dict[Any, LayerTask] = {}
        try:
            for task in waiting:
                while len(flying) >= max(1, self._session.share.count()):
                    yield self._next(flying)
                flying[self._task.remote(self._threads, _whole, (task,))] = task
            while flying:
                yield self._next(flying)
        finally:
            for reference in flying:
                self._ray.cancel(reference, force=True)
        for task in shared:
            yield task, task.run(progress, self._map)

    def close(self) -> None:
        self._session.close()

    def _next(self, flying: dict[Any, LayerTask]) -> tuple[LayerTask, Encoded]:
        ready, _ = self._ray.wait(list(flying), num_returns=1)
        task = flying.pop(ready[0])
        return task, self._get(ready[0])

    def _map(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Tasks of one layer, twice as many in the queue as there are workers; results in order. What several tasks share
        (H^-1) is sent once."""
        sent: dict[int, Any] = {}
        flying: list[Any] = []
        try:
            for task in tasks:
                arguments = [self._share(argument, sent) for argument in task]
                flying.append(self._task.remote(self._threads, function, None, *arguments))
                if len(flying) >= 2 * self._count:
                    yield self._get(flying.pop(0))
            while flying:
                yield self._get(flying.pop(0))
        finally:
            for reference in flying:
                self._ray.cancel(reference, force=True)

    def _share(self, argument: Any, sent: dict[int, Any]) -> Any:
        if not isinstance(argument, Tensor) or argument.numel() < 1 << 12:
            return argument.clone() if isinstance(argument, Tensor) else argument  # a view would take all it views along
        if id(argument) not in sent:
            sent[id(argument)] = (self._ray.put(argument.clone()), argument)  # the argument lives on, so its id stays its own
        return sent[id(argument)][0]

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from error


def encode(made: Any) -> Encoded:
    """Encode compressed layers (compressors.obs.CompressedLayer) one by one."""
    tensors: dict[str, Tensor] = {}
    entries = []
    for compressed in made:
        name = str(compressed.level)
        encoding, parts = codec.encode(compressed.weight, compressed.grid)
        entries.append(
            Entry(
                level=name,
                encoding=encoding,
                error=compressed.error,
                normalized_error=compressed.normalized_error,
                nonzeros=compressed.weight.numel() if compressed.level.is_dense else int((compressed.weight != 0).sum()),
                bits=codec.stored_bits(parts),
                checksum=codec.checksum(parts),
                activation=compressed.activation,
            )
        )
        tensors |= {format.part_key(name, part): tensor for part, tensor in parts.items()}
    return tensors, tuple(entries)


def _whole(task: LayerTask) -> Encoded:
    return task.run()


def _on_worker(threads: int, function: Callable[..., Any], packed: tuple[Any, ...] | None, *arguments: Any) -> Any:
    """Run on a worker. Tensors out of the object store cannot be written to: each is copied first."""
    torch.set_num_threads(threads)
    if packed is not None:
        (task,) = packed
        return function(replace(task, weight=task.weight.clone(), hessian=task.hessian.clone()))
    return function(*(_own(argument, threads) for argument in arguments))


def _own(argument: Any, threads: int) -> Any:
    if isinstance(argument, Tensor):
        return argument.clone()
    return replace(argument, threads=threads) if isinstance(argument, Limits) else argument
