"""Whether a model can be run block by block, found by trying it on the first batch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from apportion.compressors.blocks import blocks_of
from apportion.compressors.calibration import Calibration, FullPass
from apportion.compressors.chains import NotAChainError, Part, Reads
from apportion.compressors.hessian import collect_hessians
from apportion.compressors.kept import Kept
from apportion.compressors.layers import LayerSpec, hooked
from apportion.compressors.stages import StagePass


@dataclass(frozen=True)
class Chain:
    """A model's blocks by name, and the part of each layer. `before`: the layers that are read
    before the first block begins. `digests`: of what each block gave for the first batch."""

    blocks: tuple[str, ...]
    parts: Mapping[str, Part]
    before: frozenset[str]
    digests: tuple[bytes, ...]

    @classmethod
    def of(cls, model: nn.Module, layers: Sequence[LayerSpec], calibration: Calibration) -> Chain:
        """From one run of the first batch. Raises NotAChainError where the model has no list of
        blocks, or they do not run once each in their order."""
        names, modules = blocks_of(model), dict(model.named_modules())
        blocks = [modules[name] for name in names]
        if len(blocks) < 2:
            raise NotAChainError("the model has no list of blocks")
        digests: list[bytes] = []
        one = first_batch(calibration)
        with hooked() as handles:
            for block in blocks:
                watch = block.register_forward_hook(lambda _, __, out: digests.append(digest(out)))
                handles.append(watch)
            reads = Reads(model, blocks, lambda: one.run(model))
        before = frozenset(
            layer.name
            for layer in layers
            for parameter in layer.where.parameters
            if (0, 0) in reads.of(model.get_parameter(parameter))
        )
        return cls(tuple(names), reads.parts(model, names, layers), before, tuple(digests))

    def stage(self, calibration: Calibration, kept: Kept) -> StagePass:
        """A pass over the data from the first block to the end."""
        own = (calibration.batches, calibration.samples, calibration.forward, calibration.count)
        return StagePass(*own, kept=kept, blocks=self.blocks)

    def check(
        self,
        model: nn.Module,
        outside: Sequence[Sequence[LayerSpec]],
        calibration: Calibration,
        kept: Kept,
    ) -> None:
        """Try on the first batch that running block by block gives the model's own numbers to the
        bit: what each block gives, and the Hessians of the layers outside of them, in groups that
        memory holds. Raises NotAChainError where it does not."""
        one = first_batch(calibration)
        stage = self.stage(one, kept)
        for number, wanted in enumerate(self.digests):
            replace(stage, first=number, end=number + 1, advance=True).run(model)
            if digest(kept.get(0)) != wanted:
                raise NotAChainError("run from what one block gave, the next gives something else")
        behind = replace(stage, first=len(self.blocks))
        for group in outside:
            whole, alone = (collect_hessians(model, group, data) for data in (one, behind))
            if not all(torch.equal(whole[name], alone[name]) for name in whole):
                raise NotAChainError("run without its blocks, what follows them gets other inputs")


def first_batch(calibration: Calibration) -> FullPass:
    """A pass over the first batch alone."""
    batches = list(islice(calibration.batches(), 1))
    return FullPass(lambda: batches, calibration.samples, calibration.forward, 1)


def digest(tree: Any) -> bytes:
    """Of the values of a tree's tensors."""
    made = hashlib.blake2b()
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            plain = leaf.detach().cpu().contiguous()
            made.update(f"{plain.dtype} {tuple(plain.shape)} ".encode())
            made.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        else:
            made.update(f"{type(leaf).__name__} ".encode())
    return made.digest()
