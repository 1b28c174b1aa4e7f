"""How a cluster is divided among jobs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.evaluators.cluster.scheduler import Demand, divide

demands = st.lists(
    st.builds(
        Demand,
        wanted=st.integers(1, 6),
        cpus=st.sampled_from([0.5, 1.0, 2.0]),
        gpus=st.sampled_from([0.0, 0.5, 1.0]),
        priority=st.sampled_from([0.5, 1.0, 3.0]),
        running=st.booleans(),
    ),
    max_size=6,
)


@given(demands, st.integers(0, 16), st.integers(0, 4))
def test_what_is_given_fits_and_what_is_left_fits_nobody(
    jobs: list[Demand], cpus: int, gpus: int
) -> None:
    given_out = divide(jobs, cpus, gpus)
    left_cpus = cpus - sum(n * job.cpus for n, job in zip(given_out, jobs, strict=True))
    left_gpus = gpus - sum(n * job.gpus for n, job in zip(given_out, jobs, strict=True))
    assert left_cpus >= -1e-9
    assert left_gpus >= -1e-9
    for n, job in zip(given_out, jobs, strict=True):
        assert 0 <= n <= job.wanted
        assert n == job.wanted or job.cpus > left_cpus + 1e-9 or job.gpus > left_gpus + 1e-9


@pytest.mark.parametrize(
    ("wanted", "priorities", "running", "shares"),
    [
        ([4, 4], [1, 1], [False, False], [2, 2]),
        ([4, 1], [1, 1], [False, False], [3, 1]),
        ([9, 9], [3, 1], [False, False], [3, 1]),
        ([1, 1, 1, 1, 1, 1], [1] * 6, [False] * 6, [1, 1, 1, 1, 0, 0]),  # the earlier ones first
        ([4, 4], [1, 100], [True, False], [1, 3]),  # who runs keeps one
    ],
)
def test_shares_of_four_processors(
    wanted: list[int], priorities: list[float], running: list[bool], shares: list[int]
) -> None:
    jobs = [Demand(w, 1.0, 0.0, p, r) for w, p, r in zip(wanted, priorities, running, strict=True)]
    assert divide(jobs, 4, 0) == shares
