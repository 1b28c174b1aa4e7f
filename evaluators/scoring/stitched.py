"""StitchedScorer: the fitness of candidates on one device, changing only the weights that differ
and, where batches allow it, running only what stands behind the first change."""

from __future__ import annotations

import copy
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from apportion.compressors.corrections import (
    Recorded,
    check_correction,
    correct,
    needs_dense,
    possible,
    record,
    restore_state,
)
from apportion.compressors.levels import Candidate
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.data import trees
from apportion.evaluators.scoring import batchnorm as bn
from apportion.evaluators.scoring import stacked
from apportion.evaluators.scoring.batches import BatchScorer
from apportion.evaluators.scoring.precision import channels_last
from apportion.evaluators.scoring.prefixes import Prefixes
from apportion.evaluators.scoring.slots import Slot
from apportion.evaluators.tasks.task import Outputs, Task
from apportion.evaluators.workloads.workload import Workload

log = logging.getLogger(__name__)


class StitchedScorer(BatchScorer):
    """Scores candidates: vectors of level indices, one per layer of the database in its order.

    `corrections` are made for every candidate on the calibration data before it is scored
    (compressors.corrections). `precision`: float32, or bf16, which is autocast to bfloat16, with
    channels last on CUDA. `weight_bytes` bounds the decoded weights kept on the device,
    `prefix_bytes` the activations kept at the model's cuts; 0 turns prefix reuse off, and the
    scores are the same to the bit on the CPU. The workload's model is copied once and left alone.
    """

    def __init__(
        self,
        workload: Workload,
        database: LayerDatabase,
        fitness: str,
        batchnorm: str,
        *,
        corrections: Sequence[str] = (),
        device: str = "cpu",
        precision: str = "float32",
        weight_bytes: int = 1 << 30,
        prefix_bytes: int = 1 << 30,
    ) -> None:
        bn.check_mode(batchnorm)
        for name in corrections:
            check_correction(name)
        tuned = ["batchnorm"] if batchnorm == "recalibrate" else []
        self._corrections = possible([*tuned, *corrections], workload.model)
        super().__init__(workload, database.levels(), fitness, device, precision)
        self._mode = batchnorm
        self._database = database
        self._model = copy.deepcopy(workload.model).eval().to(self._device)
        self._slots = [Slot(self._model, record) for record in database.layers.values()]
        self._grids = [
            [entry.activation for entry in record.entries] for record in database.layers.values()
        ]
        task = workload.task
        if self._half and self._device.type == "cuda":
            self._model = self._model.to(memory_format=torch.channels_last)
            self._batches = [trees.mapped(channels_last, batch) for batch in self._batches]
        self._inputs = [task.inputs(batch) for batch in self._batches]
        self._weights: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._weight_bytes = weight_bytes
        self._placed: list[int | None] = [None] * len(self._names)
        self._run_dense(self._model)
        self._calibration = workload.correction_pass(lambda: self._batches)
        self._recorded: dict[str, Recorded] = {}
        if needs_dense(self._corrections):
            with torch.inference_mode(), self._in_mode():
                self._recorded = record(self._model, self._calibration)
        self._prefixes = Prefixes(
            self._model,
            {slot.name: slot.parameters for slot in self._slots},
            task,
            self._batches,
            0 if self._corrections else prefix_bytes,
        )
        self.width = self._choose_width()

    def score_many(self, requests: Sequence[tuple[Any, ...]]) -> list[float]:
        """The fitness of each request, the arguments of `score`. Where `width` is above 1,
        candidates of equal fidelity are run so many at once, in stacks that are always full, so
        that a score depends on nothing but its candidate. Candidates that quantize inputs cannot be
        stacked."""
        found: dict[int, float] = {}
        alike: dict[float, list[int]] = {}
        for number, (candidate, fidelity, *_) in enumerate(requests):
            self._check(candidate)
            if self.width == 1 or self._quantizes_inputs(candidate):
                found[number] = self.score(*requests[number])
            else:
                alike.setdefault(fidelity, []).append(number)
        for fidelity, numbers in alike.items():
            used = self._used(fidelity)
            samples = sum(self._samples[:used])
            for start in range(0, len(numbers), self.width):
                group = numbers[start : start + self.width]
                full = [requests[group[i % len(group)]][0] for i in range(self.width)]
                for number, total in zip(group, self._stacked_sums(full, used), strict=False):
                    found[number] = total / samples if math.isfinite(total) else math.inf
        return [found[number] for number in range(len(requests))]

    def _stacked_sums(self, candidates: Sequence[Candidate], used: int) -> list[float]:
        """Of the criterion over the first `used` batches, for each candidate."""
        weights = {
            f"{self._names[layer]}.weight": [
                self._weight(layer, candidate[layer]) for candidate in candidates
            ]
            for layer in range(len(self._names))
        }
        self._place(self._dense)  # so that no hook is left that quantizes an input
        mode = (
            bn.without_running_statistics(self._model) if self._mode == "batch" else nullcontext()
        )
        totals = [0.0] * len(candidates)
        with torch.inference_mode(), self._cast(), mode:
            for b, inputs in enumerate(self._inputs[:used]):
                for i, outputs in enumerate(stacked.run_stacked(self._model, weights, inputs)):
                    totals[i] += self._total(b, outputs)
        return totals

    def _choose_width(self) -> int:
        """Candidates to run at once: measured on a GPU; a CPU is busy with one."""
        if (
            self._device.type != "cuda"
            or self._corrections
            or type(self._task).forward is not Task.forward
            or any(record.aliases or record.place for record in self._database.layers.values())
        ):
            return 1
        candidate = self._dense

        def single() -> None:
            self._sums.clear()
            self._prefixes.forget()
            self.score(candidate)

        def together() -> None:
            self._stacked_sums([candidate] * stacked.WIDTH, len(self._batches))

        try:
            better = stacked.pays(single, together, self._device)
        except (RuntimeError, ValueError, TypeError) as error:
            # what torch.func cannot transform, or what does not fit the device's memory
            log.warning(
                "candidates are scored one by one: they cannot be stacked (%s)",
                str(error).splitlines()[0],
            )
            return 1
        return stacked.WIDTH if better else 1

    def _quantizes_inputs(self, candidate: Candidate) -> bool:
        return any(self._grids[layer][index] is not None for layer, index in enumerate(candidate))

    @contextmanager
    def _ready(self, candidate: Candidate) -> Iterator[Callable[[int], Outputs]]:
        """The candidate in place, in the batch-norm mode, with its corrections made; these are
        undone afterwards."""

        def outputs(b: int) -> Outputs:
            return self._prefixes.run(b, candidate)

        self._place(candidate)
        with self._in_mode():
            if not self._corrections:
                yield outputs
                return
            with restore_state(self._model):
                for name in self._corrections:
                    correct(name, self._model, self._calibration, self._recorded)
                yield outputs

    @contextmanager
    def _in_mode(self) -> Iterator[None]:
        with (
            self._cast(),
            bn.batch_statistics(self._model) if self._mode == "batch" else nullcontext(),
        ):
            yield

    def _place(self, candidate: Candidate) -> None:
        for layer, index in enumerate(candidate):
            if self._placed[layer] != index:
                self._slots[layer].put(self._weight(layer, index), self._grids[layer][index])
                self._placed[layer] = index

    def _weight(self, layer: int, index: int) -> Tensor:
        key = (layer, index)
        if key in self._weights:
            self._weights.move_to_end(key)
            return self._weights[key]
        weight = self._database.weight(self._names[layer], self._levels[layer][index]).to(
            self._device
        )
        self._weights[key] = weight
        taken = sum(w.numel() * w.element_size() for w in self._weights.values())
        while taken > self._weight_bytes and len(self._weights) > 1:
            _, dropped = self._weights.popitem(last=False)
            taken -= dropped.numel() * dropped.element_size()
        return weight
