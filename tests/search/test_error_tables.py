"""The additive tables that a job can ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from apportion.compressors.errors import ConfigurationError
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.scoring.stitched import StitchedScorer
from apportion.evaluators.workloads.workload import Workload
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import prepare_model
from apportion.search.space.additive import optimum


def test_a_job_searches_on_the_table_it_asks_for(
    content: dict[str, Any], digits: Workload, database: LayerDatabase
) -> None:
    job = parse_model_job({**content, "errors": "kl", "batchnorm": "recalibrate"})
    with prepare_model(job, workload=digits) as problem:
        table = problem.space.errors
        chosen = optimum(problem.space)
    scorer = StitchedScorer(digits, database, "kl", "running")
    for layer in (1, 12):
        alone = tuple(3 if i == layer else 0 for i in range(14))
        assert table[layer][3] == pytest.approx(scorer.score(alone), rel=1e-9)
    free = parse_model_job({**content, "batchnorm": "recalibrate"})
    with prepare_model(free, workload=digits) as other:
        assert other.id != problem.id
        assert not np.allclose(np.concatenate(other.space.errors), np.concatenate(table))
        assert sum(row[i] for row, i in zip(table, chosen, strict=True)) <= sum(
            row[i] for row, i in zip(table, optimum(other.space), strict=True)
        )


@pytest.mark.parametrize("errors", ["kl"])
def test_a_task_without_a_distribution_is_refused_before_anything_is_built(
    errors: str, content: dict[str, Any], make_regression: Callable[[], Workload], tmp_path: Any
) -> None:
    job = parse_model_job(
        {
            **content,
            "errors": errors,
            "database": {"path": str(tmp_path / "db"), "levels": ["dense", "w4"]},
        }
    )
    with pytest.raises(ConfigurationError, match=f"errors: {errors}: task regression has no"):
        prepare_model(job, workload=make_regression())
    assert not (tmp_path / "db").exists()


@pytest.fixture
def make_regression() -> Callable[[], Workload]:
    from apportion.evaluators.tasks.regression import Regression
    from tests.vision import nets

    def make() -> Workload:
        data = nets.numbers(64, 0)
        return Workload(nets.mlp(), data, data, data, 32, task=Regression())

    return make
