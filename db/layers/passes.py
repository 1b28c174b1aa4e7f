"""Which layers' Hessians are collected together, and by which passes over the calibration data:
of the whole model, or block by block where that is less work."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from torch import nn

from apportion.compressors.calibration import Calibration
from apportion.compressors.chained import Chain
from apportion.compressors.chains import OUTSIDE, NotAChainError
from apportion.compressors.kept import Kept
from apportion.compressors.kinds.uses import Found
from apportion.compressors.layers import LayerSpec
from apportion.compressors.stages import StagePass
from apportion.compressors.threads import full_precision

log = logging.getLogger(__name__)

HESSIAN_BYTES = 2 << 30
"""Hessians held at once: layers are collected in groups of this many bytes, one pass for each."""
INPUT_BYTES = 4 << 30
"""What one block gave for all batches is held in memory up to this many bytes, beyond it on
disk."""

Layers = Sequence[tuple[int, LayerSpec]]
"""Layers with their numbers in the database."""


@dataclass(frozen=True)
class Stage:
    """Layers that the same part of the model feeds: `data` runs it, and `last` does so for the last
    time, after which only the next stage may run."""

    layers: Layers
    data: Calibration
    last: Calibration


@dataclass(frozen=True)
class Passes:
    """Args:
    model: as it runs over `data`.
    data: the calibration data.
    found: the model's layers, with the multiply-accumulates by which the work is estimated.
    grids: whether grids of inputs are calibrated too, by a pass of their own.
    folder: for what does not fit in memory between blocks; it does not exist yet.
    """

    model: nn.Module
    data: Calibration
    found: Found
    grids: bool
    folder: Path

    def whole(self, layers: Layers) -> Stage:
        """One stage: the whole model."""
        return Stage(layers, self.data, self.data)

    def stages(self, layers: Layers) -> Generator[Stage, None, None]:
        """Stages that together have all layers. Raises NotAChainError where a later batch runs
        otherwise than the first one did: what is left is a matter of whole passes then."""
        chain = self._chain([layer for _, layer in layers]) if len(groups(layers)) > 1 else None
        if chain is None:
            yield self.whole(layers)
            return
        kept = Kept(self.folder, INPUT_BYTES)
        try:
            yield from self._by_blocks(chain, layers, kept)
        finally:
            kept.close()

    def _by_blocks(self, chain: Chain, layers: Layers, kept: Kept) -> Iterator[Stage]:
        stage, position, end = chain.stage(self.data, kept), 0, len(chain.blocks)
        for number in range(end):
            if own := _of(chain, layers, number):
                if position < number:
                    self._forward(stage, position, number)
                here = replace(stage, first=number, end=number + 1)
                yield Stage(own, here, replace(here, advance=True))
                position = number + 1
        if own := _of(chain, layers, OUTSIDE):
            if position < end:
                self._forward(stage, position, end)
            behind = replace(stage, first=end)
            yield Stage(own, behind, behind)
        if own := _of(chain, layers, None):
            yield self.whole(own)

    def _forward(self, stage: StagePass, first: int, end: int) -> None:
        """Blocks none of whose Hessians are wanted."""
        with full_precision():
            replace(stage, first=first, end=end, advance=True).run(self.model)

    def _chain(self, layers: Sequence[LayerSpec]) -> Chain | None:
        """The model as a chain of blocks, where it is one and that is less work."""
        numbered = list(enumerate(layers))
        kept = Kept(self.folder, INPUT_BYTES)
        try:
            with full_precision():
                chain = Chain.of(self.model, self.found.layers, self.data)
                whole = self._runs(numbered) * sum(self.found.macs.values())
                if self._work(chain, numbered) >= whole:
                    return None
                outside = groups(_of(chain, numbered, OUTSIDE))
                alone = [[layer for _, layer in group] for group in outside]
                chain.check(self.model, alone, self.data, kept)
        except NotAChainError as error:
            log.info("Hessians by passes of the whole model: %s", error)
            return None
        finally:
            kept.close()
        return chain

    def _work(self, chain: Chain, layers: Layers) -> int:
        """Multiply-accumulates of all stages, for a sample."""
        whole, end = sum(self.found.macs.values()), len(chain.blocks)
        blocks = [0] * end
        outside = before = 0
        for name, macs in self.found.macs.items():
            part = chain.parts.get(name)
            if part is None or part == OUTSIDE:
                outside += macs
                before += macs if name in chain.before else 0
            else:
                blocks[part] += macs
        total = position = 0
        for number in range(end):
            if own := _of(chain, layers, number):
                if position < number:
                    total += before + sum(blocks[position:number])
                total += self._runs(own) * (before + blocks[number])
                position = number + 1
        if own := _of(chain, layers, OUTSIDE):
            if position < end:
                total += before + sum(blocks[position:])
            total += self._runs(own) * outside
        return total + self._runs(_of(chain, layers, None)) * whole

    def _runs(self, layers: Layers) -> int:
        return len(groups(layers)) + (self.grids and any(own.by_module for _, own in layers))


def groups(layers: Layers) -> list[list[tuple[int, LayerSpec]]]:
    """Layers whose Hessians (float64) fit HESSIAN_BYTES together; a larger one stands alone. Those
    that need a traced pass stand before all others, so that no layer is collected in one way or
    the other for the sake of its neighbours."""
    made = []
    for by_module in (False, True):
        group: list[tuple[int, LayerSpec]] = []
        taken = 0
        for index, layer in layers:
            if layer.by_module is by_module:
                size = 8 * prod(layer.hessian_shape)
                if group and taken + size > HESSIAN_BYTES:
                    made.append(group)
                    group, taken = [], 0
                group.append((index, layer))
                taken += size
        if group:
            made.append(group)
    return made


def _of(chain: Chain, layers: Layers, part: int | None) -> Layers:
    return [(index, layer) for index, layer in layers if chain.parts[layer.name] == part]
