"""Cuts between the blocks of a list of modules, for models that torch.fx cannot trace and those
that take more than one tensor, as transformers do.

The model's own forward runs, with the blocks before a cut giving at once what the last of them
gave when it last ran: what stands around them (embeddings, masks, positions) is computed again,
which is little. This is right where blocks are a chain, each of which reads nothing but what the
one before it gave; `Prefixes` tries that before it relies on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from apportion.compressors.blocks import blocks_of
from apportion.compressors.kinds.watch import unfused
from apportion.compressors.layers import hooked
from apportion.evaluators.data import trees
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
        self.where = self._uses(layers, batch)

    def run(self, batch: Batch, start: int, begin: Any, keep: Keep) -> Outputs:
        with hooked() as handles, _skipped(self._blocks[:start], begin):
            for number, block in enumerate(self._blocks[start:], start + 1):
                handles.append(block.register_forward_hook(_keeping(keep, number)))
            return self._forward(self._model, batch)

    def _uses(self, layers: Mapping[str, Sequence[Tensor]], batch: Batch) -> dict[str, int]:
        """The part that ran when an operation first read one of a layer's parameters; 0 for a layer
        that nothing reads."""
        done: list[nn.Module] = []
        touched: dict[int, int] = {}

        def end(block: nn.Module, _args: Any, _output: Any) -> None:
            done.append(block)

        class Reads(TorchDispatchMode):
            def __torch_dispatch__(
                self, func: Any, _types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                for tensor in trees.tensors((args, kwargs)):
                    touched.setdefault(tensor.untyped_storage().data_ptr(), len(done))
                return func(*args, **(kwargs or {}))

        with torch.no_grad(), hooked() as handles, unfused(self._model), Reads():
            for block in self._blocks:
                handles.append(block.register_forward_hook(end))
            self._forward(self._model, batch)
        if done != self._blocks:
            raise NotAChainError("its blocks do not run once each, in their order")
        return {
            name: min(touched.get(own.untyped_storage().data_ptr(), 0) for own in parameters)
            for name, parameters in layers.items()
        }


class NotAChainError(Exception):
    """A model cannot be cut between its blocks."""


def _keeping(keep: Keep, number: int) -> Any:
    def hook(_block: nn.Module, _args: Any, output: Any) -> None:
        keep(number, output)

    return hook


@contextmanager
def _skipped(blocks: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Inside, these blocks give `output` without being run."""

    def given(*_args: Any, **_kwargs: Any) -> Any:
        return output

    with ExitStack() as stack:
        for block in blocks:
            own: dict[str, Any] = vars(block)
            before = own.get("forward")  # one that is the instance's own
            own["forward"] = given
            stack.callback(own.pop, "forward") if before is None else stack.callback(
                own.__setitem__, "forward", before
            )
        yield
