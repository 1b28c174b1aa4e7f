"""What scorers share: the fitness as a sum over calibration batches, none of which is run twice."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from apportion.compressors.errors import ConfigurationError
from apportion.compressors.levels import Candidate
from apportion.compressors.threads import full_precision
from apportion.evaluators.data import trees
from apportion.evaluators.scoring.fitness import criterion, needs_dense_outputs
from apportion.evaluators.scoring.precision import check_precision
from apportion.evaluators.tasks.task import Outputs
from apportion.evaluators.workloads.workload import Workload

_REMEMBERED = 4096
"""Candidates whose sums over single batches are kept."""
_SLACK = 1e-6
"""Share of a bound by which rounding may push a sum of terms that are not negative."""


class BatchScorer(ABC):
    """Scores candidates batch by batch. `levels`: names of the levels of each layer or decision,
    whose indices candidates are."""

    def __init__(
        self,
        workload: Workload,
        levels: dict[str, list[str]],
        fitness: str,
        device: str,
        precision: str,
    ) -> None:
        self._names, self._levels = list(levels), list(levels.values())
        self._dense = tuple(names.index("dense") for names in self._levels)
        self._criterion = criterion(fitness)
        self._compares = needs_dense_outputs(fitness)
        self._device = torch.device(device)
        self._half = check_precision(precision) == "bf16"
        self._task = workload.task
        self._batches = [
            trees.placed(batch, self._device)
            for batch in workload.calibration.batches(workload.batch_size)
        ]
        self._samples = [self._task.samples(batch) for batch in self._batches]
        self._dense_outputs: list[Outputs] = [None] * len(self._batches)
        self._sums: OrderedDict[Candidate, list[float]] = OrderedDict()

    @abstractmethod
    def _ready(self, candidate: Candidate) -> AbstractContextManager[Callable[[int], Outputs]]:
        """Inside, the candidate's outputs for any batch, by its number."""

    def score(self, candidate: Candidate, fidelity: float = 1.0, bound: float = math.inf) -> float:
        """Fitness (lower is better; inf where the outputs are not finite) over the first `fidelity`
        of the calibration batches, at least one; what an earlier score of the candidate on fewer of
        them computed is used again. With a `bound`, inf as soon as the batches so far show that the
        fitness is above it. Raises ConfigurationError for a candidate that does not fit the
        database."""
        self._check(candidate)
        used = self._used(fidelity)
        samples = sum(self._samples[:used])
        limit = (bound + _SLACK * abs(bound)) * samples
        sums = self._sums.pop(candidate, [])
        if len(sums) < used and sum(sums[:used]) <= limit:
            with torch.inference_mode(), self._ready(candidate) as outputs:
                while len(sums) < used and sum(sums) <= limit:
                    sums.append(self._total(len(sums), outputs(len(sums))))
        self._sums[candidate] = sums
        if len(self._sums) > _REMEMBERED:
            self._sums.popitem(last=False)
        if len(sums) < used:
            return math.inf
        fitness = sum(sums[:used]) / samples
        return fitness if math.isfinite(fitness) else math.inf

    def _run_dense(self, model: torch.nn.Module) -> None:
        """Keep the outputs that others are compared with."""
        if self._compares:
            with torch.inference_mode(), self._cast():
                self._dense_outputs = [
                    self._task.reference(self._task.forward(model, batch), batch)
                    for batch in self._batches
                ]

    def _used(self, fidelity: float) -> int:
        """Batches that make up this share of the calibration data."""
        return max(1, math.ceil(fidelity * len(self._batches) - 1e-9))

    def _total(self, b: int, outputs: Outputs) -> float:
        """Of the criterion over these outputs of batch `b`."""
        values = self._criterion(self._task, outputs, self._batches[b], self._dense_outputs[b])
        total = float(values.sum())
        if total < -_SLACK * self._samples[b]:
            raise ConfigurationError(
                f"task {self._task.identity}: a fitness below 0, {total:.3g} over "
                f"{self._samples[b]} samples; bounds need one that is 0 or above for every sample"
            )
        return total

    def _check(self, candidate: Candidate) -> None:
        if len(candidate) != len(self._names):
            raise ConfigurationError(
                f"a candidate of {len(candidate)} levels for {len(self._names)} layers"
            )
        for name, index, levels in zip(self._names, candidate, self._levels, strict=True):
            if not 0 <= index < len(levels):
                raise ConfigurationError(
                    f"layer {name!r}: level index {index}, valid are 0 to {len(levels) - 1}"
                )

    def _cast(self) -> AbstractContextManager[Any]:
        if self._half:
            return torch.autocast(self._device.type, torch.bfloat16)
        return full_precision()
