"""Forward passes that start from what the last candidate has in common with the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from apportion.compressors.calibration import call
from apportion.evaluators.data import trees
from apportion.evaluators.scoring import segments
from apportion.evaluators.tasks.task import Inputs, Outputs

_RATE = 1 / 32
"""Weight of a pass in the mean share that kept activations could have saved."""
_WORTH = 0.04
"""The least such share for which activations are kept: to keep them costs about as much."""


class Prefixes:
    """Runs candidates on `batches`. The model's activations at its cuts are kept within `limit`
    bytes over all batches (0: none), and a pass starts from the last one before the first of the
    `layers` (by name, with the parameters that hold their weights) where the candidate differs from
    what the batch ran before. While candidates have little in common, nothing is kept. The weights
    must be the candidate's already. A model that takes more than one tensor always runs as a
    whole."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Sequence[Tensor]],
        batches: Sequence[Inputs],
        limit: int,
    ) -> None:
        self._model, self._batches = model, batches
        if limit and not isinstance(batches[0], Tensor):
            segments.log.warning("no prefix reuse: the model takes more than one tensor")
            limit = 0
        whole = segments.Segments((partial(call, model),), dict.fromkeys(layers, 0))
        self._segments = segments.cut(model, layers) if limit else whole
        if len(self._segments.parts) > 1 and not self._same_as_whole():
            segments.log.warning(
                "no prefix reuse: the traced model does not give the model's own outputs"
            )
            self._segments = whole
        self._segment_of = [self._segments.where[name] for name in layers]
        self._cuts = self._choose_cuts(limit)
        self.forget()

    def forget(self) -> None:
        """All that is kept."""
        # For every batch: the candidate that ran last, and the inputs of parts that were kept of
        # it.
        self._seen: list[tuple[int, ...] | None] = [None] * len(self._batches)
        self._inputs: list[dict[int, Tensor]] = [{} for _ in self._batches]
        self._saving = 1.0

    def run(self, b: int, candidate: tuple[int, ...]) -> Outputs:
        """The model's outputs on batch `b`."""
        start, inputs, parts = (
            self._first_change(b, candidate),
            self._inputs[b],
            self._segments.parts,
        )
        part = max((i for i in inputs if i <= start), default=0)
        x = inputs[part] if part else self._batches[b]
        possible = max((i for i in self._cuts if i <= start), default=0) / len(parts)
        self._saving += _RATE * (possible - self._saving)
        self._seen[b] = None  # until all that is kept belongs to `candidate` again
        if self._saving > _WORTH or part:
            for i in range(part, len(parts)):
                if i in self._cuts:
                    inputs[i] = x
                x = parts[i](x)
        else:
            inputs.clear()
            x = call(self._model, x)  # a little faster than its parts
        self._seen[b] = candidate
        return x

    def _first_change(self, b: int, candidate: tuple[int, ...]) -> int:
        """The first part that holds a layer where `candidate` differs from what batch `b` last
        ran."""
        seen = self._seen[b]
        if seen is None:
            return 0
        changed = [
            s for s, old, new in zip(self._segment_of, seen, candidate, strict=True) if old != new
        ]
        return min(changed, default=len(self._segments.parts) - 1)

    def _same_as_whole(self) -> bool:
        with torch.inference_mode():
            x = y = self._batches[0][:2]
            for part in self._segments.parts:
                y = part(y)
            z = trees.tensors(self._model(x))
            return all(torch.equal(*pair) for pair in zip(trees.tensors(y), z, strict=True))

    def _choose_cuts(self, limit: int) -> frozenset[int]:
        """The parts whose inputs are kept: all where they fit `limit` over all batches, else every
        second, third, ..."""
        with torch.inference_mode():
            x, sizes = self._batches[0], [0]
            for part in self._segments.parts[:-1]:
                x = part(x)
                sizes.append(x.numel() * x.element_size() * len(self._batches))
        for stride in range(1, len(sizes) + 1):
            kept = range(stride, len(sizes), stride)
            if sum(sizes[i] for i in kept) <= limit:
                return frozenset(kept)
        return frozenset()
