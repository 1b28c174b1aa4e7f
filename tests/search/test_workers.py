"""Who works for a job."""

import pytest
import torch

from apportion.compressors.errors import ConfigurationError
from apportion.search.jobs.job import WorkersConfig
from apportion.search.runs.workers import Workers


def test_a_gpu_that_is_not_there_is_missed_before_the_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with Workers(WorkersConfig.model_validate({"gpus": 1})) as workers:
        with pytest.raises(
            ConfigurationError, match="workers.gpus is above 0, and torch finds no CUDA device"
        ):
            workers.executor()
        made: list[str] = []
        pool = workers.pool(lambda: made.append("scorer"))  # type: ignore[arg-type, func-returns-value, return-value]
        assert list(pool.evaluate([])) == []
        assert made == []  # nothing to score: nothing is started, and nothing missed
        with pytest.raises(ConfigurationError, match="torch finds no CUDA device"):
            pool.evaluate([((0,), 1.0)])
