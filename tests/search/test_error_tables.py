"""The additive tables that a job can ask for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from apportion.compressors.errors import ConfigurationError, JobError
from apportion.db.layers.database import LayerDatabase
from apportion.evaluators.scoring.stitched import StitchedScorer
from apportion.evaluators.workloads.workload import Workload
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import prepare_model
from apportion.search.space.additive import optimum
from tests.channel_jobs import JOINT, channel_problem


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


@pytest.mark.parametrize("errors", ["kl", "fisher", "probe"])
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


def test_the_table_from_gradients_orders_as_the_measured_one(
    content: dict[str, Any], digits: Workload
) -> None:
    tables = {}
    for errors in ("layer", "kl", "fisher", "probe"):
        with prepare_model(parse_model_job({**content, "errors": errors}), workload=digits) as made:
            tables[errors] = np.concatenate([row[1:] for row in made.space.errors])
    true = tables.pop("kl")
    ranks = {errors: spearmanr(table, true).statistic for errors, table in tables.items()}
    assert ranks["fisher"] > 0.97
    assert ranks["probe"] > 0.97
    assert ranks["layer"] < min(ranks["fisher"], ranks["probe"])
    mild = true < 0.02
    assert np.median(tables["fisher"][mild] / true[mild]) == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"database": {"path": "x", "levels": ["dense", "w8a8"]}}, "level w8a8 quantizes inputs"),
        ({"layers": {"last": "w8a8"}}, "level w8a8 quantizes inputs"),
        ({"layers": {"levels": {"*": ["dense", "2:4+w4a4"]}}}, "level 2:4\\+w4a4 quantizes"),
        (
            {"database": {"path": "x", "levels": ["dense", "channels-0.50"]}},
            "level channels-0.50 changes shapes",
        ),
    ],
)
def test_levels_that_move_no_weights_have_no_table_from_gradients(
    changes: dict[str, Any], says: str, content: dict[str, Any]
) -> None:
    with pytest.raises(JobError, match=f"errors: fisher: {says}"):
        parse_model_job({**content, **changes, "errors": "fisher"})


def test_a_run_says_how_well_probes_ordered(content: dict[str, Any], digits: Workload) -> None:
    job = parse_model_job({**content, "errors": "probe"})
    with prepare_model(job, workload=digits) as problem:
        table = problem.describe()["table"]
        assert table["probes"] == 28
        assert table["rank_correlation_before"] < table["rank_correlation_after"] <= 1


@pytest.mark.slow
def test_two_ray_workers_make_the_table_of_one_process(
    content: dict[str, Any], digits: Workload, database_path: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="apportion[ray] is not installed")
    tables = []
    for count in (0, 2):
        shutil.copytree(database_path, own := tmp_path / str(count))
        shutil.rmtree(own / "tables", ignore_errors=True)  # to be made anew
        job = parse_model_job(
            {
                **content,
                "errors": "fisher",
                "database": {**content["database"], "path": str(own)},
                "workers": {"count": count, "cpus": 1},
            }
        )
        with prepare_model(job, workload=digits) as made:
            tables.append(np.concatenate(made.space.errors))
    assert (tables[0] == tables[1]).all()
    assert tables[0].max() > 0


def test_channel_and_input_levels_have_measured_and_probed_tables(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)
    )
    x = torch.randn(64, 8)
    cases = {
        "channels": (JOINT, {"channels": {"multiple": 2}}),
        "inputs": (("dense", "w8a8", "w4a4", "w3a3"), {}),
    }
    for name, (levels, options) in cases.items():
        true = probed = None
        for errors in ("kl", "probe"):
            with channel_problem(
                *(model.eval(), x, tmp_path / name, levels),
                errors=errors,
                batchnorm="running",
                database_options=options,
            ) as made:
                true, probed = probed, made.full_space.errors
        assert true is not None
        assert probed is not None
        for one, other in zip(true, probed, strict=True):
            assert one[0] == other[0] == 0
            assert (one[1:] > 0).all()
            same = np.isclose(one, other, rtol=1e-9)
            assert same[1:].sum() >= min(2, len(one) - 1)
