"""Forward passes that start from what the last candidate has in common with the next."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apportion.compressors.chains import NotAChainError
from apportion.evaluators.data import trees
from apportion.evaluators.data.dataset import Batch
from apportion.evaluators.scoring import segments
from apportion.evaluators.scoring.block_cuts import BlockCuts
from apportion.evaluators.scoring.cuts import Cuts, Whole
from apportion.evaluators.tasks.task import Outputs, Task

log = logging.getLogger(__name__)

_RATE = 1 / 32
"""Weight of a pass in the mean share that kept activations could have saved."""
_WORTH = 0.04
"""The least such share for which activations are kept: to keep them costs about as much."""
_TRIED = 2
"""Samples on which a cut model is compared with the whole one."""


class Prefixes:
    """Runs candidates on `batches` as `task` feeds them. The model's activations at its cuts are
    kept within `limit` bytes over all batches (0: none), and a pass starts from the last one before
    the first of the `layers` (by name, with the parameters that hold their weights) where the
    candidate differs from what the batch ran before. While candidates have little in common,
    nothing is kept. The weights must be the candidate's already."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Sequence[Tensor]],
        task: Task,
        batches: Sequence[Batch],
        limit: int,
    ) -> None:
        self._batches = batches
        self._whole = Whole(model, layers, task.forward)
        self._cuts = _cut(model, layers, task, batches[0], self._whole) if limit else self._whole
        self._part_of = [self._cuts.where[name] for name in layers]
        self._kept_at = self._choose(limit)
        self.forget()

    def forget(self) -> None:
        """All that is kept."""
        # For every batch: the candidate that ran last, and what was kept of it, by part.
        self._seen: list[tuple[int, ...] | None] = [None] * len(self._batches)
        self._kept: list[dict[int, Any]] = [{} for _ in self._batches]
        self._saving = 1.0

    def run(self, b: int, candidate: tuple[int, ...]) -> Outputs:
        """The model's outputs on batch `b`."""
        start, kept = self._first_change(b, candidate), self._kept[b]
        part = max((i for i in kept if i <= start), default=0)
        possible = max((i for i in self._kept_at if i <= start), default=0) / self._cuts.count
        self._saving += _RATE * (possible - self._saving)
        self._seen[b] = None  # until all that is kept belongs to `candidate` again

        def keep(i: int, x: Any) -> None:
            if i in self._kept_at:
                kept[i] = x

        if self._saving > _WORTH or part:
            outputs = self._cuts.run(self._batches[b], part, kept.get(part), keep)
        else:
            kept.clear()
            outputs = self._whole.run(self._batches[b], 0, None, keep)  # a little faster
        self._seen[b] = candidate
        return outputs

    def _first_change(self, b: int, candidate: tuple[int, ...]) -> int:
        """The first part that holds a layer where `candidate` differs from what batch `b` last
        ran."""
        seen = self._seen[b]
        if seen is None:
            return 0
        changed = [
            s for s, old, new in zip(self._part_of, seen, candidate, strict=True) if old != new
        ]
        return min(changed, default=self._cuts.count - 1)

    def _choose(self, limit: int) -> frozenset[int]:
        """The parts whose beginnings are kept: all where they fit `limit` over all batches, else
        every second, third, ..."""
        sizes = [0] * self._cuts.count

        def keep(i: int, x: Any) -> None:
            sizes[i] = len(self._batches) * sum(
                tensor.numel() * tensor.element_size() for tensor in trees.tensors(x)
            )

        if self._cuts.count > 1:
            with torch.inference_mode():
                self._cuts.run(self._batches[0], 0, None, keep)
        for stride in range(1, len(sizes) + 1):
            kept = range(stride, len(sizes), stride)
            if sum(sizes[i] for i in kept) <= limit:
                return frozenset(kept)
        return frozenset()


def _cut(
    model: nn.Module,
    layers: Mapping[str, Sequence[Tensor]],
    task: Task,
    batch: Batch,
    whole: Whole,
) -> Cuts:
    """The model cut by its graph or, where that cannot be done, between its blocks; in one part,
    and a warning, where neither gives the model's own outputs."""
    few = trees.cut(batch, slice(_TRIED))
    reasons = []
    for made in _ways(model, layers, task, few):
        if isinstance(made, str):
            reasons.append(made)
        elif made.count == 1 or _same(made, whole, few):
            return made
        else:
            reasons.append("run from a cut, it does not give its own outputs")
    log.warning("no prefix reuse: the model runs as a whole (%s)", "; ".join(reasons))
    return whole


def _ways(
    model: nn.Module, layers: Mapping[str, Sequence[Tensor]], task: Task, few: Batch
) -> Iterator[Cuts | str]:
    """Cut models to try, the best first, or why there is none."""
    plain = type(task).forward is Task.forward
    if plain and isinstance(task.inputs(few), Tensor):
        try:
            yield segments.cut(model, layers, task.inputs)
        except segments.UntraceableError as error:
            yield str(error)
    try:
        yield BlockCuts(model, layers, task.forward, few)
    except NotAChainError as error:
        yield str(error)


def _same(cuts: Cuts, whole: Whole, batch: Batch) -> bool:
    """Whether outputs are the whole model's to the bit, from the start and from every cut."""
    begins: dict[int, Any] = {0: None}
    with torch.inference_mode():
        wanted = trees.tensors(whole.run(batch, 0, None, begins.__setitem__))
        cuts.run(batch, 0, None, begins.__setitem__)
        if len(begins) != cuts.count:
            return False
        for start, begin in begins.items():
            found = trees.tensors(cuts.run(batch, start, begin, lambda _i, _x: None))
            if len(found) != len(wanted) or not all(
                torch.equal(*pair) for pair in zip(found, wanted, strict=True)
            ):
                return False
    return True
