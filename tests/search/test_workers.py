"""Who works for a job."""

from pathlib import Path

import pytest
import torch

from apportion.compressors.errors import ConfigurationError
from apportion.evaluators.scoring.spec import ScoringSpec
from apportion.evaluators.workloads.config import WorkloadConfig
from apportion.evaluators.workloads.workload import load_workload
from apportion.search.jobs.sections import WorkersConfig
from apportion.search.runs.workers import Workers


def test_a_gpu_that_is_not_there_is_missed_before_the_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    workload = load_workload(WorkloadConfig.model_validate({"data": {"kind": "digits"}}))
    spec = ScoringSpec(workload, tmp_path / "none", "", "loss", "batch")  # no scorer can be made
    with Workers(WorkersConfig.model_validate({"gpus": 1})) as workers:
        with pytest.raises(
            ConfigurationError, match="workers.gpus is above 0, and torch finds no CUDA device"
        ):
            workers.executor()
        pool = workers.pool(spec)
        assert list(pool.evaluate([])) == []
        assert pool.there == 0  # nothing to score: nothing is started, and nothing missed
        with pytest.raises(ConfigurationError, match="torch finds no CUDA device"):
            pool.evaluate([((0,), 1.0)])
