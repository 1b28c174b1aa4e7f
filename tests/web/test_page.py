"""The page in a real browser, and what its server lets out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="apportion[web] is not installed")
from fastapi.testclient import TestClient

from apportion.db.runs.store import Run, RunStore, StoredTrial
from apportion.search.jobs.job_file import parse_job
from apportion.search.runs.pipeline import prepare, run_search
from apportion.search.service import mirror
from apportion.search.service.folder import JobFolder, JobState
from apportion.search.web.jobs import Jobs
from apportion.search.web.report import page, write_report
from apportion.search.web.server import make_app
from tests.needs import missing
from tests.service.conftest import free_port

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
HERE = "//127.0.0.1:"
EVIL = "<img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """A finished search on a table, one of whose layers has a name that is not meant well."""
    folder = tmp_path_factory.mktemp("store")
    lines = ["layer,level,seconds"]
    times = (("dense", 1), ("unstr-0.50", 0.6), ("2:4", 0.5), ("unstr-0.90", 0.2))
    for layer in [*(f"layer{i}" for i in range(7)), EVIL]:
        lines += [f"{layer},{level},{seconds}" for level, seconds in times]
    (folder / "times.csv").write_text("\n".join(lines) + "\n")
    job = parse_job(
        {
            "workload": {"table": "times.csv"},
            "budgets": {"speedup": "2x"},
            "search": {
                "algorithms": ["local", "random", "race"],
                "evaluations": 60,
                "seeds": [0, 1],
            },
        },
        folder / "job.yaml",
    )
    assert job.store is not None
    opened = RunStore(job.store)
    with prepare(job) as problem:
        run_search(problem, opened)
    return opened


def visitor(app: Any, host: str = "127.0.0.1:8080") -> TestClient:
    """One who asks the server by an address that it serves."""
    return TestClient(app, base_url=f"http://{host}")


@pytest.fixture(scope="module")
def client(store: RunStore, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return visitor(make_app(Jobs(store.url, tmp_path_factory.mktemp("no-jobs"))))


def test_the_figures_hold_what_the_store_holds(client: TestClient, store: RunStore) -> None:
    (row,) = client.get("/api/jobs").json()
    assert (row["state"], row["asked"], row["evaluations"]) == ("finished", 360, 360)
    job = client.get(f"/api/jobs/{row['job']}").json()
    assert {curve["algorithm"] for curve in job["curves"]} == {"local", "random", "race"}
    for curve in job["curves"]:
        runs = [run for run in store.runs() if run.algorithm == curve["algorithm"]]
        assert curve["low"][-1] == min(run.best for run in runs if run.best is not None)
        assert all(a >= b for a, b in zip(curve["median"], curve["median"][1:], strict=False))
    best = job["trials"][0]
    assert best["fitness"] == row["best"]
    levels = [int(index) for index in best["candidate"].split(",")]
    assert sum(
        job["space"]["errors"][layer][level] for layer, level in enumerate(levels)
    ) == pytest.approx(best["fitness"])
    used = job["space"]["base"]["latency"] + sum(
        job["space"]["costs"]["latency"][i][level] for i, level in enumerate(levels)
    )
    assert used <= job["space"]["budgets"]["latency"] + 1e-9


def test_a_run_without_any_finite_score_is_shown(tmp_path: Path) -> None:
    opened = RunStore(f"sqlite:///{tmp_path / 'runs.sqlite'}")
    opened.add_job("job", {"fitness": "kl"})
    run = opened.add_run(Run("ga-s0-1", "job", "ga", {}, 0, 2))
    opened.append(run.id, "problem", 0, StoredTrial((0, 1), 1.0, float("inf"), True, 0.1))
    client = visitor(make_app(Jobs(opened.url, tmp_path)))
    assert client.get("/api/jobs").json()[0]["best"] is None
    assert client.get("/api/jobs/job").json()["runs"][0]["best"] is None


def test_only_who_has_the_token_gets_in(store: RunStore, tmp_path: Path) -> None:
    app = make_app(Jobs(store.url, tmp_path), token="secret")
    assert visitor(app).get("/api/jobs").status_code == 401
    assert visitor(app).get("/?token=wrong").status_code == 401
    assert (
        visitor(app).get("/api/jobs", headers={"Authorization": "Bearer secret"}).status_code == 200
    )
    known = visitor(app)
    assert known.get("/?token=secret").status_code == 200
    assert known.get("/api/jobs").status_code == 200  # by the cookie


PATHS = ("/", "/api/jobs", "/api/events", "/api/jobs/none", "/api/jobs/none/events", "/nothing")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example"])
def test_a_name_that_was_made_to_lead_here_gets_nothing(
    path: str, host: str, store: RunStore, tmp_path: Path
) -> None:
    answer = visitor(make_app(Jobs(store.url, tmp_path)), host).get(path)
    assert answer.status_code == 421
    assert "--allow-host" in answer.json()["detail"]
    assert_guarded(answer.headers)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:9", "LOCALHOST:8080", "localhost.", "[::1]:8080", "[::1]"]
)
def test_its_own_names_at_any_port_get_in(host: str, store: RunStore, tmp_path: Path) -> None:
    assert visitor(make_app(Jobs(store.url, tmp_path)), host).get("/api/jobs").status_code == 200


def test_a_proxys_name_gets_in_where_it_is_allowed(store: RunStore, tmp_path: Path) -> None:
    app = make_app(Jobs(store.url, tmp_path), hosts=["page.example"])
    assert visitor(app, "page.example").get("/api/jobs").status_code == 200
    assert visitor(app, "127.0.0.1").get("/api/jobs").status_code == 421


@pytest.mark.parametrize("token", [None, "secret"])
@pytest.mark.parametrize("path", ["/", "/api/jobs", "/api/jobs/none", "/nothing"])
def test_every_answer_says_what_browsers_may_do_with_it(
    path: str, token: str | None, store: RunStore, tmp_path: Path
) -> None:
    assert_guarded(visitor(make_app(Jobs(store.url, tmp_path), token)).get(path).headers)


def assert_guarded(headers: Any) -> None:
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"


def test_nothing_can_be_changed_and_no_file_outside_the_results_leaves(
    store: RunStore, tmp_path: Path
) -> None:
    job = store.jobs()[0]
    folder = JobFolder(tmp_path, "mine")
    folder.write_state(JobState("mine", "job.yaml", state="finished", store=store.url, search=job))
    (folder.results / "best").mkdir(parents=True)
    (folder.results / "best" / "profile.json").write_text("{}")
    (folder.path / "secret.txt").write_text("secret")
    (folder.results / "link").symlink_to(folder.path / "secret.txt")
    client = visitor(make_app(Jobs(None, tmp_path)))
    assert client.get(f"/api/jobs/{job}").json()["files"] == ["best/profile.json"]
    assert client.get(f"/api/jobs/{job}/files/best/profile.json").text == "{}"
    for name in (
        "../secret.txt",
        "%2e%2e/secret.txt",
        "..%2fsecret.txt",
        "link",
        "/etc/passwd",
        "best",
    ):
        assert client.get(f"/api/jobs/{job}/files/{name}").status_code == 404, name
    assert client.get("/api/jobs/none").status_code == 404
    app: Any = client.app
    assert {method for route in app.routes for method in getattr(route, "methods", ())} <= {
        "GET",
        "HEAD",
    }


@pytest.mark.parametrize("at_a_url", [False, True])
def test_jobs_of_a_storage_before_and_after_their_search(
    at_a_url: bool, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_FOLLOW_EVERY", 0.0)
    folder = JobFolder(tmp_path, "mine")
    state = JobState("mine", "job.yaml", state="building", step=("compress", 3, 14))
    folder.write_state(state)
    client = visitor(make_app(Jobs(None, f"file://{tmp_path}" if at_a_url else tmp_path)))
    (row,) = client.get("/api/jobs").json()
    assert (row["job"], row["state"], row["waiting"]) == ("mine", "building: compress 3/14", True)
    state.state, state.store, state.search = "finished", store.url, store.jobs()[0]
    (folder.results / "best").mkdir(parents=True)
    (folder.results / "best" / "profile.json").write_text("{}")
    folder.write_state(state)
    (row,) = client.get("/api/jobs").json()
    assert (row["name"], row["state"], "waiting" in row) == ("mine", "finished", False)
    assert client.get(f"/api/jobs/{row['job']}/files/best/profile.json").text == "{}"


def test_a_storage_that_cannot_be_reached_is_named() -> None:
    answer = visitor(make_app(Jobs(None, "nosuch://bucket/jobs"))).get("/api/jobs")
    assert answer.status_code == 503
    assert "nosuch://bucket/jobs" in answer.json()["detail"]


def test_a_report_cannot_break_out_of_its_data() -> None:
    text = page(
        {
            "summary": {"job": "</title><script>alert(1)</script>"},
            "x": "</script><script>alert(1)</script>",
        }
    )
    assert "<script>alert(1)" not in text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        missing("no Chromium is installed (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab; at the end nothing may have been complained of in its console, and nothing asked of
    another host."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    tab = context.new_page()
    problems: list[str] = []
    tab.on(
        "console",
        lambda said: problems.append(said.text) if said.type in ("error", "warning") else None,
    )
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on(
        "request",
        lambda asked: (
            problems.append(asked.url)
            if "http" in asked.url[:4] and HERE not in asked.url
            else None
        ),
    )
    tab.set_default_timeout(20_000)
    yield tab
    context.close()
    assert problems == []


@pytest.fixture
def served(store: RunStore, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "apportion",
        "serve",
        "--port",
        str(port),
        "--store",
        store.url,
        "--storage",
        str(tmp_path),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
    url = f"http://127.0.0.1:{port}/"
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            break
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    yield url
    server.terminate()
    server.wait(20)


def look_at(tab: Any, job: str) -> None:
    """What a job's page must show and do, served or from a file."""
    tab.get_by_role("heading", name=f"Job {job}").wait_for()
    assert tab.locator("svg polyline").count() >= 4  # three curves and the front
    league = tab.get_by_role("region", name="Standings of the algorithms")
    first = league.locator("tbody tr td:first-child")
    league.get_by_role("button", name="algorithm").click()
    assert first.all_inner_texts() == ["local", "race", "random"]
    league.get_by_role("button", name="algorithm").press("Enter")
    assert first.all_inner_texts() == ["random", "race", "local"]
    tab.get_by_role("button", name="local (2)").click()  # hides a curve
    assert tab.get_by_role("button", name="local (2)").get_attribute("aria-pressed") == "false"
    tab.get_by_role("region", name="Best trials").get_by_role("button", name="show").first.click()
    layers = tab.get_by_role("region", name="Layers of the profile")
    assert layers.locator("tbody tr").count() == 8
    assert EVIL in layers.inner_text()
    assert "owned" not in tab.title()
    with tab.expect_download() as download:
        tab.get_by_role("link", name="Download this profile").click()
    assert "unstr" in Path(download.value.path()).read_text()


def test_a_report_opens_from_disk(tab: Any, store: RunStore, tmp_path: Path) -> None:
    job = store.jobs()[0]
    write_report(store, job, tmp_path / "report.html")
    tab.goto(f"file://{tmp_path}/report.html")
    look_at(tab, job)
    if folder := os.environ.get("APPORTION_SCREENSHOTS"):
        tab.screenshot(path=f"{folder}/report.png", full_page=True)
        tab.emulate_media(color_scheme="dark")
        tab.screenshot(path=f"{folder}/report-dark.png", full_page=True)


def test_the_page_shows_jobs_and_what_changes_while_it_is_open(
    tab: Any, served: str, store: RunStore
) -> None:
    job = store.jobs()[0]
    tab.goto(served)
    tab.get_by_role("link", name=job).click()
    look_at(tab, job)
    store.add_run(Run("late-s0", job, "late", {}, 0, 10.0))
    candidate = store.trials(store.runs(job)[0].id)[0].candidate
    store.append("late-s0", "late", 0, StoredTrial(candidate, 1.0, 0.125, True, 0.1))
    tab.get_by_role("region", name="Runs").get_by_text("late-s0").wait_for()
    tab.get_by_text("updated").wait_for()
    league = tab.get_by_role("region", name="Standings of the algorithms")
    assert league.locator("tbody tr td:first-child").all_inner_texts() == [
        "random",
        "race",
        "local",
        "late",
    ]  # as it was sorted
    tab.goto(served)
    tab.get_by_role("checkbox").check()
    tab.get_by_role("button", name="Compare chosen").click()
    tab.get_by_role("heading", name="Jobs side by side").wait_for()
