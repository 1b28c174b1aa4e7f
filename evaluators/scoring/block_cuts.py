"""Cuts between the blocks of a list of modules, for models that torch.fx cannot trace and those
that take more than one tensor, as transformers do (compressors/chains.py says how such a model is
run from a cut). `Prefixes` tries whether the blocks are a chain before it relies on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from apportion.compressors.blocks import blocks_of
from apportion.compressors.chains import NotAChainError, Reads, skipped
from apportion.compressors.layers import hooked
from apportion.evaluators.data.dataset import Batch
from apportion.evaluators.scoring.cuts import Cuts, Forward, Keep
from apportion.evaluators.tasks.task import Outputs


class BlockCuts(Cuts):
    """Part 0 is all up to the end of the first block, part i block i, the last one what follows.

    Args:
        model: whose largest list of modules holds the blocks.
        layers: by name, with the parameters that hold their weights.
        forward: how a batch is fed to it.
        batch: a small one, to see where the layers are used.

    Raises:
        NotAChainError: there are no blocks, or they do not run once each in their order.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Sequence[Tensor]],
        forward: Forward,
        batch: Batch,
    ) -> None:
        self._model, self._forward = model, forward
        modules = dict(model.named_modules())
        self._blocks = [modules[name] for name in blocks_of(model)]
        if len(self._blocks) < 2:
            raise NotAChainError("the model has no list of blocks")
        self.count = len(self._blocks) + 1
        reads = Reads(model, self._blocks, lambda: forward(model, batch))
        self.where = {
            name: min((done for own in parameters for _, done in reads.of(own)), default=0)
            for name, parameters in layers.items()
        }

    def run(self, batch: Batch, start: int, begin: Any, keep: Keep) -> Outputs:
        with hooked() as handles, skipped(self._blocks[:start], begin):
            for number, block in enumerate(self._blocks[start:], start + 1):
                handles.append(block.register_forward_hook(_keeping(keep, number)))
            return self._forward(self._model, batch)


def _keeping(keep: Keep, number: int) -> Any:
    def hook(_block: nn.Module, _args: Any, output: Any) -> None:
        keep(number, output)

    return hook
