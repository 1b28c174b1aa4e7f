"""ChannelScorer: the fitness of candidates whose channels are gone, each run as the smaller model
that it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from torch import nn

from apportion.compressors.corrections import correct, possible
from apportion.compressors.errors import ConfigurationError
from apportion.compressors.levels import Candidate, parse_level
from apportion.db.channels.database import ChannelDatabase
from apportion.evaluators.rewriting.smaller import Smaller
from apportion.evaluators.scoring import batchnorm as bn
from apportion.evaluators.scoring.batches import BatchScorer
from apportion.evaluators.tasks.task import Outputs
from apportion.evaluators.workloads.workload import Workload

CORRECTIONS = ("batchnorm",)
"""What can be put right in a smaller model: the others compare channels with the dense model's."""


class ChannelScorer(BatchScorer):
    """Scores candidates: vectors of level indices, one per decision of the database in its order.
    As StitchedScorer, whose arguments these are; but a model is made for each candidate."""

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
        super().__init__(workload, database.levels(), fitness, device, precision)
        tuned = ["batchnorm"] if batchnorm == "recalibrate" else []
        self._corrections = possible([*tuned, *corrections], workload.model)
        self._mode = batchnorm
        self._smaller = Smaller(workload.model, database)
        self._calibration = workload.correction_pass(lambda: self._batches)
        self._run_dense(self._made(self._dense))

    @contextmanager
    def _ready(self, candidate: Candidate) -> Iterator[Callable[[int], Outputs]]:
        model = self._made(candidate)
        mode = bn.batch_statistics(model) if self._mode == "batch" else nullcontext()
        with self._cast(), mode:
            for name in self._corrections:
                correct(name, model, self._calibration, {})
            yield lambda b: self._task.forward(model, self._batches[b])

    def _made(self, candidate: Candidate) -> nn.Module:
        chosen = zip(self._names, self._levels, candidate, strict=True)
        profile = {name: parse_level(levels[index]) for name, levels, index in chosen}
        return self._smaller(profile).to(self._device)


def check_corrections(names: Sequence[str]) -> None:
    """Raises ConfigurationError for what cannot be put right in a smaller model."""
    if wrong := [name for name in names if name not in CORRECTIONS]:
        raise ConfigurationError(
            f"corrections: {wrong[0]!r} compares channels with the dense model's, which has others "
            f"than a model with channel levels; valid there: {', '.join(CORRECTIONS)}"
        )
