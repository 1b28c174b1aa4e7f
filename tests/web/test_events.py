"""What changes is told to whoever watches, from wherever they watch, by one look for all."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI

from apportion.db.runs.store import Run, RunStore, StoredTrial
from apportion.search.service.folder import JobFolder, JobState
from apportion.search.web import events
from apportion.search.web.jobs import Jobs
from apportion.search.web.server import make_app
from tests.service.conftest import free_port


def add(store: RunStore, job: str, trials: int) -> None:
    store.add_job(job, {"fitness": "kl", "store": None})
    run = store.add_run(Run(f"ga-s0-{job}", job, "ga", {}, 0, 10.0))
    for number in range(run.told, run.told + trials):
        store.append(
            run.id, "problem", number, StoredTrial((0, number), 1.0, 1.0 / (number + 1), True, 0.1)
        )


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    opened = RunStore(f"sqlite:///{tmp_path / 'runs.sqlite'}")
    add(opened, "one", 1)
    add(opened, "two", 1)
    return opened


class Served:
    """The page's server in a thread, below a path as behind a reverse proxy."""

    def __init__(self, jobs: Jobs) -> None:
        self.port = free_port()
        outer = FastAPI()
        outer.mount("/team/page", make_app(jobs))
        config = uvicorn.Config(outer, port=self.port, log_level="critical", lifespan="off")
        config.timeout_graceful_shutdown = 1
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        end = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < end
            time.sleep(0.02)

    def ask(self, path: str, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", f"/team/page{path}", headers=headers)
        return connection.getresponse()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)


@pytest.fixture
def served(store: RunStore, tmp_path: Path) -> Iterator[Served]:
    server = Served(Jobs(store.url, tmp_path / "jobs-of-the-service"))
    yield server
    server.close()


def told(answer: http.client.HTTPResponse) -> tuple[str, Any]:
    """The next event: its version and content."""
    version = ""
    while True:
        line = answer.readline().decode().rstrip("\n")
        if line.startswith("id: "):
            version = line.removeprefix("id: ")
        elif line.startswith("data: "):
            return version, json.loads(line.removeprefix("data: "))


def test_what_changed_between_load_and_connect_is_told(served: Served, store: RunStore) -> None:
    loaded = served.ask("/api/jobs")
    seen = loaded.headers["ETag"]
    assert [row["asked"] for row in json.loads(loaded.read())] == [1, 1]
    add(store, "one", 2)
    _, content = told(served.ask(f"/api/events?seen={seen}"))
    assert [(row["job"], row["asked"]) for row in content["rows"]] == [("one", 3)]
    assert content["order"] is None


def test_what_changed_while_the_connection_was_lost_is_told(
    served: Served, store: RunStore
) -> None:
    seen = served.ask("/api/jobs").headers["ETag"]
    add(store, "one", 1)
    stream = served.ask(f"/api/events?seen={seen}")
    last, _ = told(stream)
    stream.close()
    add(store, "two", 4)
    again = served.ask(f"/api/events?seen={seen}", **{"Last-Event-ID": last})
    _, content = told(again)
    assert [(row["job"], row["asked"]) for row in content["rows"]] == [("two", 5)]


def test_who_has_seen_another_servers_version_is_told_all(served: Served) -> None:
    for seen in ("", "?seen=0badcafe-7", "?seen=nonsense"):
        _, content = told(served.ask(f"/api/events{seen}"))
        assert [row["job"] for row in content["rows"]] == content["order"] == ["two", "one"]


def test_a_jobs_own_stream_tells_what_its_page_has_not(served: Served, store: RunStore) -> None:
    version = json.loads(served.ask("/api/jobs/one").read())["version"]
    add(store, "one", 1)
    _, content = told(served.ask(f"/api/jobs/one/events?seen={version}"))
    assert content["summary"]["asked"] == 2


def test_a_state_that_changes_alone_is_told(
    served: Served, store: RunStore, tmp_path: Path
) -> None:
    folder = JobFolder(tmp_path / "jobs-of-the-service", "mine")
    state = JobState("mine", "job.yaml", state="queued", store=store.url, search="one")
    folder.write_state(state)
    seen = served.ask("/api/jobs").headers["ETag"]
    stream = served.ask(f"/api/events?seen={seen}")
    state.state, state.error = "failed", "no room"
    folder.write_state(state)
    _, content = told(stream)
    assert [(row["name"], row["state"]) for row in content["rows"]] == [("mine", "failed")]


@pytest.mark.parametrize("path", ["/events", "", "/files/x"])
def test_a_job_that_is_not_there_is_404_and_no_stream(path: str, served: Served) -> None:
    answer = served.ask(f"/api/jobs/NOPE{path}")
    assert answer.status == 404
    assert json.loads(answer.read()) == {"detail": "there is no 'NOPE'"}


@pytest.mark.parametrize("path", ["/api/events", "/api/jobs/one/events"])
def test_proxies_neither_hold_a_stream_back_nor_close_it(
    path: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_KEEP_ALIVE", 0.01)
    version = served.ask("/api/jobs").headers["ETag"]
    stream = served.ask(f"{path}?seen={version}")
    assert stream.headers["X-Accel-Buffering"] == "no"
    assert stream.headers["Cache-Control"] == "no-store"
    lines = [stream.readline() for _ in range(40)]
    assert b": still here\n" in lines


def test_one_look_serves_all_and_takes_one_query(store: RunStore, tmp_path: Path) -> None:
    class Counted(Jobs):
        looks = 0

        def look(self) -> Any:
            self.looks += 1
            return super().look()

    jobs = Counted(store.url, tmp_path / "none")
    jobs.look()
    queries: list[str] = []
    engine: Any = jobs._opened(store.url)._database._engine
    sa.event.listen(engine, "before_cursor_execute", lambda *given: queries.append(given[2]))
    before = jobs.looks

    async def watch_by(pages: int) -> None:
        watch = events.Watch(jobs)

        async def page() -> None:
            async for _ in watch.looks():
                return

        await asyncio.gather(*(page() for _ in range(pages)))

    asyncio.run(watch_by(20))
    assert jobs.looks - before == 1
    assert len([query for query in queries if query != "BEGIN"]) == 1, queries
    assert jobs.pause >= 1.0


def test_what_watches_survives_a_store_that_is_away(tmp_path: Path) -> None:
    class Away(Jobs):
        looks = 0

        def look(self) -> Any:
            self.looks += 1
            self.pause = 0.0
            if self.looks < 3:
                raise RuntimeError("away")
            return super().look()

    store = RunStore(f"sqlite:///{tmp_path / 'runs.sqlite'}")
    watch = events.Watch(Away(store.url, tmp_path / "none"))

    async def see() -> list[str | None]:
        seen: list[str | None] = []
        async for _ in watch.looks():
            seen.append(watch.trouble)
            if watch.trouble is None:
                return seen
        return seen

    seen = asyncio.run(see())
    assert "away" in seen
    assert seen[-1] is None
