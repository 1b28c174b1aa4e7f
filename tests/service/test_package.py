"""What of a job is read before it runs, and what of it may be shown."""

import json

import pytest

from apportion.search.service.folder import JobState
from apportion.search.service.package import code_names


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"workload": {"model": "mine:net"}}, ["mine:net"]),
        ({"workload": {"model": "torchvision:resnet18"}}, []),
        ({"workload": {"model": "files.1-evil:build"}}, ["files.1-evil:build"]),
        ({"search": {"algorithms": [{"ga": {"level": "2:4"}}]}}, []),
        ({"latency": {"table": "mine:latency"}}, ["mine:latency"]),
        ({"search": {"algorithms": ["ga", "mine:Search"]}}, ["mine:Search"]),
        ({"search": {"algorithms": [{"mine:Search": {"size": 3}}]}}, ["mine:Search"]),
        (
            {"search": {"algorithms": [{"race": {"algorithms": ["ga", "mine:Search"]}}]}},
            ["mine:Search"],
        ),
    ],
)
def test_code_of_the_user_is_found_wherever_a_job_may_name_it(
    content: dict[str, object], named: list[str]
) -> None:
    assert code_names(content) == named


def test_a_state_without_any_finite_score_can_be_written() -> None:
    state = JobState("job", "job.yaml", runs=[{"run": "ga-s0-1", "best": float("inf")}])
    assert json.loads(json.dumps(state.to_json(), allow_nan=False))["runs"] == [
        {"run": "ga-s0-1", "best": None}
    ]


def test_the_password_of_a_store_is_kept_but_not_shown() -> None:
    state = JobState("job", "job.yaml", store="postgresql://ann:secret@db/apportion")
    assert state.to_json()["store"] == "postgresql://ann:secret@db/apportion"
    assert state.shown()["store"] == "postgresql://ann:***@db/apportion"
