"""What of a job is read before it runs, and what of it may be shown."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from apportion.compressors.errors import JobError
from apportion.db.runs.store import RunStore
from apportion.db.runs.url import resolve
from apportion.search.jobs.job import Job
from apportion.search.jobs.job_file import load_job, parse_job
from apportion.search.runs.pipeline import prepare, run_search
from apportion.search.service.archive import unpack
from apportion.search.service.folder import JobFolder, JobState
from apportion.search.service.package import code_names, pack
from tests.service.conftest import write_job


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


SECRET = "hunter"
URLS = [
    f"postgresql://ann:{SECRET}@db/x",
    f"postgresql://ann:{SECRET}/{SECRET}@db/x",
    f"postgresql://ann@db/x?password={SECRET}",
]


@pytest.mark.parametrize("url", URLS)
def test_a_password_is_in_no_state(url: str, tmp_path: Path) -> None:
    folder = JobFolder(tmp_path, "job")
    folder.write_state(JobState("job", "job.yaml", store=url))
    assert SECRET not in (folder.path / "state.json").read_text()
    assert "***" in str(folder.read_state())
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("upload", [False, True])
def test_a_password_is_in_no_package(url: str, upload: bool, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="password_env") as raised:
        pack(write_job(tmp_path, store=url), tmp_path / "out", upload=upload)
    assert SECRET not in str(raised.value)
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize(
    "store", [{"url": "postgresql://ann@db/x", "password_env": "PW"}, "env:STORE_URL"]
)
def test_a_variable_in_its_place_is_taken_along_by_its_name(
    store: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PW", SECRET)
    monkeypatch.setenv("STORE_URL", URLS[0])
    packed = pack(write_job(tmp_path, store=store), tmp_path / "out", upload=True)
    assert not any(SECRET in p.read_text() for p in (tmp_path / "out").rglob("*.json"))
    content = json.loads((tmp_path / "out/job.json").read_text())
    assert parse_job(content, tmp_path / "job.yaml").store == packed.job.store
    assert resolve(str(packed.job.store)) == URLS[0]


@pytest.mark.parametrize(
    "change",
    [
        {"budgets": {"latency": 0.5}},  # a rule of the whole job
        {"budgets": {"flop": 0.5}},
        {"store": 3},
        {"store": {"url": URLS[0], "password": SECRET}},
        {"workload": {"model": "x" * 5000, "data": 3}},
    ],
)
def test_a_wrong_job_is_one_short_line_without_its_store(
    change: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(JobError) as raised:
        load_job(write_job(tmp_path, **({"store": URLS[0]} | change)))
    assert SECRET not in str(raised.value)
    assert len(str(raised.value)) < 600 + len(str(tmp_path))


def test_a_password_is_not_kept_in_the_run_store(tmp_path: Path) -> None:
    (tmp_path / "times.csv").write_text("layer,level,seconds\na,dense,2\na,2:4,1\n")
    search = {"algorithms": ["random"], "evaluations": 2, "seeds": [0]}
    content = {
        "workload": {"table": "times.csv"},
        "budgets": {"speedup": "1x"},
        "search": search,
        "store": URLS[0],
    }
    store = RunStore(f"sqlite:///{tmp_path / 'runs.sqlite'}")
    with prepare(parse_job(content, tmp_path / "job.yaml")) as problem:
        run_search(problem, store)
    assert SECRET not in json.dumps(store.job(problem.id))
    assert SECRET.encode() not in (tmp_path / "runs.sqlite").read_bytes()


def test_a_models_folder_is_uploaded(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    content = {
        "workload": {"model": "huggingface:./mine", "data": {"kind": "digits"}},
        "database": {"path": "db", "levels": ["dense", "2:4"]},
        "budgets": {"flops": 0.6},
        "search": {"algorithms": ["dp"], "evaluations": 1},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(content))
    target = tmp_path / "package"
    target.mkdir()
    pack(tmp_path / "job.yaml", target, upload=True)
    unpack(target)
    job = load_job(target / "job.json")
    assert isinstance(job, Job)
    assert job.workload.model is not None
    folder = Path(job.workload.model.removeprefix("huggingface:"))
    assert folder.parent.parent == target
    assert (folder / "config.json").read_text() == "{}"
