"""ChannelScorer: the fitness of candidates whose channels are gone, each run as the smaller model
that it is."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from apportion.compressors.corrections import correct, possible
from apportion.compressors.errors import ConfigurationError
from apportion.compressors.levels import Candidate, parse_level
from apportion.compressors.threads import full_precision
from apportion.db.channels.database import ChannelDatabase
from apportion.evaluators.data import trees
from apportion.evaluators.rewriting.smaller import Smaller
from apportion.evaluators.scoring import batchnorm as bn
from apportion.evaluators.scoring.fitness import criterion, needs_dense_outputs
from apportion.evaluators.scoring.precision import check_precision
from apportion.evaluators.tasks.task import Outputs
from apportion.evaluators.workloads.workload import Workload

_REMEMBERED = 4096
"""Candidates whose sums over single batches are kept."""
_SLACK = 1e-6
"""Share of a bound by which rounding may push a sum of terms that are not negative."""
CORRECTIONS = ("batchnorm",)
"""What can be put right in a smaller model: the others compare channels with the dense model's."""


class ChannelScorer:
    """Scores candidates: vectors of level indices, one per decision of the database in its order.
    As StitchedScorer, whose arguments these are; weights are not exchanged, but a model is made for
    each candidate."""

    def __init__(
        self,
        workload: Workload,
        database: ChannelDatabase,
        fitness: str,
        batchnorm: str,
        *,
        corrections: Sequence[str] = (),
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        bn.check_mode(batchnorm)
        check_corrections(corrections)
        tuned = ["batchnorm"] if batchnorm == "recalibrate" else []
        self._corrections = possible([*tuned, *corrections], workload.model)
        self._criterion, self._mode = criterion(fitness), batchnorm
        self._device = torch.device(device)
        self._half = check_precision(precision) == "bf16"
        self._task = workload.task
        self._levels = database.levels()
        self._smaller = Smaller(workload.model, database)
        self._batches = [
            trees.placed(batch, self._device)
            for batch in workload.calibration.batches(workload.batch_size)
        ]
        self._samples = [self._task.samples(batch) for batch in self._batches]
        self._calibration = workload.correction_pass(lambda: self._batches)
        self._sums: OrderedDict[Candidate, list[float]] = OrderedDict()
        self._dense: list[Outputs] = [None] * len(self._batches)
        if needs_dense_outputs(fitness):
            dense = self._made(tuple(levels.index("dense") for levels in self._levels.values()))
            with torch.inference_mode(), self._cast():
                self._dense = [
                    self._task.reference(self._task.forward(dense, batch), batch)
                    for batch in self._batches
                ]

    def score(self, candidate: Candidate, fidelity: float = 1.0, bound: float = math.inf) -> float:
        """As StitchedScorer.score."""
        used = max(1, math.ceil(fidelity * len(self._batches) - 1e-9))
        samples = sum(self._samples[:used])
        limit = (bound + _SLACK * abs(bound)) * samples
        sums = self._sums.pop(candidate, [])
        if len(sums) < used and sum(sums[:used]) <= limit:
            with torch.inference_mode(), self._corrected(self._made(candidate)) as model:
                while len(sums) < used and sum(sums) <= limit:
                    sums.append(self._sum(len(sums), model))
        self._sums[candidate] = sums
        if len(self._sums) > _REMEMBERED:
            self._sums.popitem(last=False)
        if len(sums) < used:
            return math.inf
        fitness = sum(sums[:used]) / samples
        return fitness if math.isfinite(fitness) else math.inf

    def _made(self, candidate: Candidate) -> nn.Module:
        if len(candidate) != len(self._levels):
            raise ConfigurationError(
                f"a candidate of {len(candidate)} levels for {len(self._levels)} decisions"
            )
        profile = {}
        for (name, levels), index in zip(self._levels.items(), candidate, strict=True):
            if not 0 <= index < len(levels):
                raise ConfigurationError(
                    f"{name!r}: level index {index}, valid are 0 to {len(levels) - 1}"
                )
            profile[name] = parse_level(levels[index])
        return self._smaller(profile).to(self._device)

    @contextmanager
    def _corrected(self, model: nn.Module) -> Iterator[nn.Module]:
        with (
            self._cast(),
            bn.batch_statistics(model) if self._mode == "batch" else nullcontext(),
        ):
            for name in self._corrections:
                correct(name, model, self._calibration, {})
            yield model

    def _sum(self, b: int, model: nn.Module) -> float:
        outputs = self._task.forward(model, self._batches[b])
        values = self._criterion(self._task, outputs, self._batches[b], self._dense[b])
        total = float(values.sum())
        if total < -_SLACK * self._samples[b]:
            raise ConfigurationError(
                f"task {self._task.identity}: a fitness below 0, {total:.3g} over "
                f"{self._samples[b]} samples; bounds need one that is 0 or above for every sample"
            )
        return total

    def _cast(self) -> AbstractContextManager[Any]:
        if self._half:
            return torch.autocast(self._device.type, torch.bfloat16)
        return full_precision()


def check_corrections(names: Sequence[str]) -> None:
    """Raises ConfigurationError for what cannot be put right in a smaller model."""
    if wrong := [name for name in names if name not in CORRECTIONS]:
        raise ConfigurationError(
            f"corrections: {wrong[0]!r} compares channels with the dense model's, which has others "
            f"than a model with channel levels; valid there: {', '.join(CORRECTIONS)}"
        )
