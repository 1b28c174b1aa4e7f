"""How a cluster is divided among jobs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.compressors.errors import ConfigurationError
from apportion.evaluators.cluster import scheduler
from apportion.evaluators.cluster.limits import limits
from apportion.evaluators.cluster.room import Room, fit
from apportion.evaluators.cluster.scheduler import Demand, divide

demands = st.lists(
    st.builds(
        Demand,
        wanted=st.integers(1, 6),
        each=st.fixed_dictionaries(
            {"CPU": st.sampled_from([0.5, 1.0, 2.0]), "GPU": st.sampled_from([0.0, 0.5, 1.0])},
            optional={"a100": st.just(1.0)},
        ),
        priority=st.sampled_from([0.5, 1.0, 3.0]),
        running=st.booleans(),
    ),
    max_size=6,
)
nodes = st.lists(
    st.fixed_dictionaries(
        {"CPU": st.integers(0, 8)}, optional={"GPU": st.integers(1, 4), "a100": st.just(1)}
    ),
    max_size=4,
)


@given(demands, nodes)
def test_what_is_given_fits_and_what_is_left_fits_nobody(
    jobs: list[Demand], there: list[dict[str, float]]
) -> None:
    shares = divide(jobs, there)
    for name in ("CPU", "GPU", "a100"):
        taken = sum(n * job.each.get(name, 0) for n, job in zip(shares, jobs, strict=True))
        assert taken <= sum(node.get(name, 0) for node in there) + 1e-9
    for n, job in zip(shares, jobs, strict=True):
        assert 0 <= n <= job.wanted
        alone = sum(fit(node, job.each) for node in there)
        assert n <= alone
        if len(jobs) == 1:
            assert n == min(job.wanted, alone)


def test_workers_are_counted_node_by_node() -> None:
    four = [{"CPU": 1.0}, {"CPU": 3.0}]
    assert divide([Demand(4, {"CPU": 2.0}, 1)], four) == [1]
    marked = [{"CPU": 4.0}, {"CPU": 4.0, "a100": 1.0}]
    assert divide([Demand(4, {"CPU": 1.0, "a100": 0.5}, 1)], marked) == [2]
    # Nodes with GPUs are left to those that need some.
    mixed = [{"CPU": 2.0, "GPU": 2.0}, {"CPU": 2.0}]
    assert divide([Demand(2, {"CPU": 1.0}, 1), Demand(2, {"CPU": 1, "GPU": 1}, 1)], mixed) == [2, 2]


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
    jobs = [
        Demand(w, {"CPU": 1}, p, r) for w, p, r in zip(wanted, priorities, running, strict=True)
    ]
    assert divide(jobs, [{"CPU": 3}, {"CPU": 1}]) == shares


ROOM = [{"CPU": 1.0}, {"CPU": 4.0, "GPU": 2.0}]
GROWS = {
    "most": 3,
    "kinds": [
        (True, 0, {"CPU": 1}),
        (False, 2, {"CPU": 4, "GPU": 2}),
        (False, 9, {"CPU": 8}),
    ],
}


@pytest.mark.parametrize(
    ("count", "each", "limits", "said"),
    [
        (5, {"CPU": 1, "GPU": 0}, None, None),
        (2, {"CPU": 4, "GPU": 0}, None, "2 with 4 CPUs each: the cluster has room for 1, no auto"),
        (2, {"CPU": 1, "GPU": 2}, None, "2 with 1 CPU, 2 GPUs each: the cluster has room for 1"),
        (2, {"CPU": 1, "a100": 1}, None, "2 with 1 CPU, 1 a100 each: the cluster has room for 0"),
        (25, {"CPU": 1}, GROWS, None),
        (26, {"CPU": 1}, GROWS, "room for 5, its autoscaler can make room for 25 "),
        (4, {"CPU": 1, "GPU": 1}, GROWS, None),
        (5, {"CPU": 1, "GPU": 1}, GROWS, "room for 2, its autoscaler can make room for 4 "),
    ],
)
def test_what_there_is_and_what_may_come(
    count: int, each: dict[str, float], limits: dict[str, Any] | None, said: str | None
) -> None:
    room = Room(ROOM, lambda: limits)
    if said is None:
        room.check(count, each)
        return
    with pytest.raises(ConfigurationError) as refused:
        room.check(count, each)
    assert said in str(refused.value)
    assert "workers.at_least: fewer to begin with" in str(refused.value)


def test_the_autoscaler_is_asked_for_what_all_jobs_want_and_the_request_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sdk = pytest.importorskip("ray.autoscaler.sdk", reason="apportion[ray] is not installed")
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr(sdk, "request_resources", lambda bundles: asked.append(bundles))
    monkeypatch.setattr(scheduler, "_ASK_EVERY", 0.01)
    monkeypatch.setattr(scheduler, "_GONE", 1.0)

    def until(last: list[dict[str, float]]) -> None:
        end = time.monotonic() + 20
        while not asked or asked[-1] != last:
            assert time.monotonic() < end, asked
            time.sleep(0.01)

    shares = scheduler.Scheduler()
    until([])  # what another one may have left
    one, two = {"CPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}
    assert shares.ask("a", 2, one | {"GPU": 0}, 1, []) == 0
    until([one, one])
    assert shares.ask("b", 1, two, 1, []) == 0
    until([one, one, two])
    shares.leave("a")
    until([two])
    until([])  # "b" gives no sign of life


def test_another_heads_autoscaler_on_the_same_machine_is_not_this_ones(tmp_path: Path) -> None:
    kinds = {"h": {"resources": {}, "max_workers": 0}, "w": {"resources": {"CPU": 4}}}
    content = {"max_workers": 2, "head_node_type": "h", "available_node_types": kinds}
    (tmp_path / "autoscaler.json").write_text(json.dumps(content))
    command = [sys.executable, "-c", "print(flush=True); input()", "monitor.py"]
    command += ["--gcs-address=192.0.2.7:1", f"--autoscaling-config={tmp_path / 'autoscaler.json'}"]
    head = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert head.stdout is not None
        head.stdout.readline()
        assert limits("127.0.0.1:2") is None
        found = limits("127.0.0.1:1")
        assert found == {"most": 2, "kinds": [(True, 0, {}), (False, 2, {"CPU": 4})]}
    finally:
        head.communicate("\n")
