"""What a problem says of costs that layers have in pairs."""

from __future__ import annotations

import json

import pytest

from apportion.search.jobs.job import TableJob
from apportion.search.runs.problem import Problem
from apportion.search.runs.table_problem import TableProblem
from apportion.search.space.decisions import Decisions
from apportion.search.space.space import SearchSpace
from tests.search.spaces import coupled_space, random_space


def problem(space: SearchSpace) -> Problem:
    job = TableJob.model_validate({"workload": {"table": "none"}, "budgets": {"speedup": 2}})
    return TableProblem(
        job=job, full_space=space, decisions=Decisions.free(space), key="key", id="id"
    )


def test_shares_of_the_dense_model_count_pairs() -> None:
    space = coupled_space(2, metrics=2)
    made = problem(space)
    assert made.ratios((0,) * 5) == {"flops": 1.0, "params": 1.0}
    told = json.loads(json.dumps(made.describe()))
    candidate = told["optimum"]
    for metric, share in made.ratios(tuple(candidate)).items():
        total = told["base"][metric]
        total += sum(row[i] for row, i in zip(told["costs"][metric], candidate, strict=True))
        total += sum(table[candidate[i]][candidate[j]] for i, j, table in told["pairs"][metric])
        assert total == pytest.approx(share)
        assert share <= told["budgets"][metric] + 1e-9


def test_without_pairs_nothing_is_said_of_them() -> None:
    assert "pairs" not in problem(random_space(1)).describe()
