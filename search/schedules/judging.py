"""All proposals of a netadapt iteration, trained and compared by the job's workers, each kept on
disk as soon as it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from apportion.compressors.progress import Progress, silent
from apportion.db.files import write_atomically
from apportion.db.layers import format
from apportion.evaluators.data.dataset import TensorDataset
from apportion.evaluators.training.checkpoints import read_state
from apportion.evaluators.training.config import FinetuneConfig
from apportion.evaluators.training.proposals import Course, Judged
from apportion.evaluators.workloads.workload import Workload
from apportion.search.jobs.job import Job
from apportion.search.runs.workers import Workers
from apportion.search.schedules.candidates import Candidates, Proposal
from apportion.search.schedules.record import made

_JUDGED = 1024
"""Samples at most that proposals are compared on."""


class Judging:
    """`source`: the data that proposals are compared on, selection or calibration samples."""

    def __init__(self, job: Job, workload: Workload, progress: Progress = silent) -> None:
        """`workload`: the job's, with the dense model, which is the teacher."""
        self._job, self._workload, self._progress = job, workload, progress
        selection = workload.selection
        self.source = "calibration" if selection is None else "selection"
        self._data: TensorDataset = (
            workload.calibration
            if selection is None
            else replace(selection, indices=selection.indices[:_JUDGED]).load(progress)
        )

    def judged(
        self,
        step: int,
        folder: Path,
        key: str,
        candidates: Candidates,
        proposals: Sequence[Proposal],
        workers: Workers,
    ) -> list[Judged]:
        """Train and compare the proposals that `folder` does not have yet.

        Args:
            step: of the iteration: other training samples in each.
            folder: keeps them.
            key: of the schedule and the model that they are proposals for.
            candidates: makes their models.
            proposals: these.
            workers: do the work.

        Returns:
            What became of each, in their order; the same whoever did the work.

        Raises:
            OutputError: the folder cannot be written; WorkersError.
        """
        made(folder)
        files = [folder / f"{number}.pt" for number in range(len(proposals))]
        keys = [format.digest({"key": key, **asdict(proposal)}) for proposal in proposals]
        found: dict[int, Judged] = {}
        for number, path in enumerate(files):
            if path.exists() and (kept := read_state(path)).pop("key", None) == keys[number]:
                found[number] = Judged(**kept)
        missing = [number for number in range(len(proposals)) if number not in found]
        what = f"netadapt {step}, proposals"
        self._progress(what, len(found), len(proposals))
        if missing:
            smaller = [candidates.model(proposals[number]) for number in missing]
            for at, judged in workers.apply(Course.judged, self._course(step), smaller):
                number = missing[at]
                _keep(judged, keys[number], files[number])
                found[number] = judged
                self._progress(what, len(found), len(proposals))
        return [found[number] for number in range(len(proposals))]

    def _course(self, step: int) -> Course:
        """The training: the same samples for all proposals."""
        job, workload = self._job, self._workload
        assert job.schedule is not None
        short, size = job.schedule.short, workload.batch_size
        count = min(len(workload.train), max(1, short) * size)
        rng = np.random.default_rng([job.workload.seed, step])
        chosen = workload.train.subset(rng.permutation(len(workload.train))[:count].tolist())
        config = None
        if short:
            given = job.recovery.finetune or FinetuneConfig()
            epochs = max(1, short // max(1, count // size))
            config = given.model_copy(update={"epochs": epochs, "workers": 0})
        return Course(
            replace(workload, train=chosen, test=self._data, selection=None),
            config,
            "batchnorm" in job.corrections.export,
            job.workload.seed,
            job.workers.cpus,
            job.workers.gpus,
        )


def _keep(judged: Judged, key: str, path: Path) -> None:
    content = {
        "metric": judged.metric,
        "loss": judged.loss,
        "state": judged.state,
        "key": key,
    }
    write_atomically(path, lambda temporary: torch.save(content, temporary))
