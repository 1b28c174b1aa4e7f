"""Calibration data through some blocks of a chain at a time, from what the block before gave."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import nn

from apportion.compressors.calibration import Calibration, Inside
from apportion.compressors.chains import NotAChainError, skipped
from apportion.compressors.kept import Kept
from apportion.compressors.kinds.watch import unhurried
from apportion.compressors.layers import hooked
from apportion.compressors.progress import Progress, silent


@dataclass(frozen=True)
class StagePass(Calibration):
    """Runs the blocks from number `first` to before `end`, and what stands before and between them;
    of a batch that is kept behind the last block (`end` is None), all that follows it too.

    Args:
        kept: what the block before `first` gave for each batch.
        blocks: names of the model's blocks, a chain.
        advance: put what the last block that runs gave in its place: `first` is behind it then.
    """

    kept: Kept = field(kw_only=True)
    blocks: Sequence[str] = ()
    first: int = 0
    end: int | None = None
    advance: bool = False

    def run(
        self,
        model: nn.Module,
        inside: Inside | None = None,
        progress: Progress = silent,
        what: str = "run the calibration data",
    ) -> int:
        """As `Calibration.run`. Raises NotAChainError where a batch does not come to a block."""
        modules = dict(model.named_modules())
        blocks = [modules[name] for name in self.blocks]
        total = 0
        title = f"{what}: {self._title()}"
        with hooked() as handles, unhurried():
            if self.end is not None:
                handles.append(blocks[self.end - 1].register_forward_hook(_stop))
            for number, batch in enumerate(self.batches()):
                progress(title, number, max(self.count, number + 1))
                begin = self.kept.get(number) if self.first else None
                context = inside((batch, begin)) if inside else nullcontext()
                try:
                    with torch.no_grad(), skipped(blocks[: self.first], begin), context:
                        self.forward(model, batch)
                except _Reached as reached:
                    if self.advance:
                        self.kept.put(number, reached.output)
                else:
                    if self.end is not None:
                        raise NotAChainError(f"a batch does not come to block {self.end}")
                total += self.samples(batch)
        progress(title, 1, 1)
        return total

    def _title(self) -> str:
        if self.end is None:
            return "outside of the blocks"
        return f"block {self.end} of {len(self.blocks)}"


class _Reached(BaseException):
    """Unwinds a forward pass that need not go on."""

    def __init__(self, output: Any) -> None:
        self.output = output


def _stop(_block: nn.Module, _args: Any, output: Any) -> NoReturn:
    raise _Reached(output)
