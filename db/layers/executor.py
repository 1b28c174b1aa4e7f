"""Where the layers of a build are compressed: what an executor is, and the one that works in this
process. Ray's is evaluators/cluster/executor.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from apportion.compressors.activations import ActivationGrid
from apportion.compressors.elimination.work import Mapper
from apportion.compressors.layers import LayerSpec
from apportion.compressors.levels import Level
from apportion.compressors.obs import compress_layer
from apportion.compressors.options import CompressionOptions
from apportion.compressors.progress import Progress, silent
from apportion.compressors.threads import device_for
from apportion.db.layers import codec, format
from apportion.db.layers.format import Entry

Encoded = tuple[dict[str, Tensor], tuple[Entry, ...]]
"""A layer as its file holds it: encoded parts by key, and the entries in the order of their
levels."""


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
        if self.layer.is_table:
            return float(self.layer.rows) * self.layer.columns
        return float(self.layer.rows) * self.layer.columns**3

    def run(
        self, progress: Progress = silent, mapper: Mapper | None = None, device: str = "cpu"
    ) -> Encoded:
        hessian = self.hessian.to(device)
        made = compress_layer(
            self.weight,
            self.layer,
            hessian,
            self.levels,
            self.options,
            self.activations,
            progress,
            mapper,
        )
        return encode(made)


class Executor(Protocol):
    def run(
        self, tasks: Sequence[LayerTask], progress: Progress
    ) -> Iterator[tuple[LayerTask, Encoded]]:
        """Every task with its result, as they finish."""

    def close(self) -> None: ...


class LocalExecutor:
    """One layer after the other, here: on the GPU where the job has one, and torch finds it."""

    def __init__(self, gpus: float = 0) -> None:
        self._device = device_for(gpus)

    def run(
        self, tasks: Sequence[LayerTask], progress: Progress
    ) -> Iterator[tuple[LayerTask, Encoded]]:
        for task in tasks:
            yield task, task.run(progress, device=self._device)

    def close(self) -> None:
        pass


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
                nonzeros=compressed.weight.numel()
                if compressed.level.is_dense
                else int((compressed.weight != 0).sum()),
                bits=codec.stored_bits(parts),
                checksum=codec.checksum(parts),
                activation=compressed.activation,
            )
        )
        tensors |= {format.part_key(name, part): tensor for part, tensor in parts.items()}
    return tensors, tuple(entries)
