"""The web page's server: reads run stores and job folders, and changes nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from apportion.compressors.errors import ApportionError
from apportion.db.runs.store import RunStore
from apportion.search.report.figures import job_figures, job_summary
from apportion.search.service.folder import JobFolder, JobState, job_folders
from apportion.search.service.mirror import Mirror
from apportion.search.web.guard import LOOPBACK, add_guard
from apportion.search.web.report import page, page_script

_LOOK_EVERY = 1.0


class Jobs:
    """The jobs of a run store, and those of the service's storage, each with its own store."""

    def __init__(self, store: str | None, storage: str | Path) -> None:
        self._store, self._mirror = store, Mirror(str(storage), kept="page")
        self._storage = self._mirror.folder
        self._open: dict[str, RunStore] = {}

    def summaries(self) -> list[dict[str, Any]]:
        """Of all jobs, the newest first."""
        states = self._states()
        service = _searching(states)
        rows = {
            (url, job): self._named(job_summary(self._opened(url), job), state)
            for (url, job), state in service.items()
        }
        if self._store is not None:
            for job in self._opened(self._store).jobs():
                rows.setdefault((self._store, job), job_summary(self._opened(self._store), job))
        waiting = [_not_searching(state) for state in states if state.search is None]
        return [*reversed(waiting), *reversed(rows.values())]

    def figures(self, job: str) -> dict[str, Any]:
        """Raises KeyError for a job that is not there."""
        url, state = self._find(job)
        version = self.version(
            job
        )  # of what was there before the figures were read: too old is looked at again
        found = job_figures(self._opened(url), job) | {"version": version}
        found["summary"] = self._named(found["summary"], state)
        found["files"] = [str(path) for path in self._files(state)]
        return found

    def version(self, job: str) -> str:
        """What differs when the figures do, and takes little to read. Raises KeyError."""
        url, state = self._find(job)
        runs = [(run.id, run.told, run.state) for run in self._opened(url).runs(job)]
        return hashlib.sha256(repr((runs, state.state if state else None)).encode()).hexdigest()[
            :16
        ]

    def file(self, job: str, name: str) -> Path:
        """One of the job's result files. Raises KeyError."""
        _, state = self._find(job)
        if state is None or Path(name) not in self._files(
            state
        ):  # only what is listed, so nothing outside the folder
            raise KeyError(name)
        return JobFolder(self._storage, state.job).results / name

    def _files(self, state: JobState | None) -> list[Path]:
        if state is None:
            return []
        results = JobFolder(self._storage, state.job).results
        return sorted(
            path.relative_to(results)
            for path in results.rglob("*")
            if path.is_file() and not path.is_symlink()
        )

    def _find(self, job: str) -> tuple[str, JobState | None]:
        for (url, own), state in _searching(self._states()).items():
            if own == job:
                return url, state
        if self._store is not None and job in self._opened(self._store).jobs():
            return self._store, None
        raise KeyError(job)

    def _states(self) -> list[JobState]:
        self._mirror.follow()
        return [
            folder.judged(state)
            for folder in job_folders(self._storage)
            if (state := folder.read_state()) is not None
        ]

    @staticmethod
    def _named(summary: dict[str, Any], state: JobState | None) -> dict[str, Any]:
        return summary if state is None else summary | {"name": state.job, "state": state.state}

    def _opened(self, url: str) -> RunStore:
        if url not in self._open:
            self._open[url] = RunStore(url)
        return self._open[url]


def _searching(states: Sequence[JobState]) -> dict[tuple[str, str], JobState]:
    """(store, job in it) -> state, of those that have begun to search; the latest where several are
    one."""
    return {(state.store, state.search): state for state in states if state.store and state.search}


def _not_searching(state: JobState) -> dict[str, Any]:
    """The row of a job that has not begun to search, and may never."""
    said = state.state if state.step is None else "{}: {} {}/{}".format(state.state, *state.step)
    row = {
        "job": state.job,
        "state": f"{said}: {state.error}" if state.error else said,
        "waiting": True,
    }
    return row | {
        "fitness": None,
        "budgets": {},
        "algorithms": [],
        "asked": 0,
        "evaluations": 0,
        "best": None,
    }


def make_app(jobs: Jobs, token: str | None = None, hosts: Sequence[str] = LOOPBACK) -> FastAPI:
    """The application, for those whom `add_guard` lets in."""
    app = FastAPI(title="apportion", docs_url=None, redoc_url=None, openapi_url=None)
    text = page()

    add_guard(app, page_script(), token, hosts)

    @app.get("/")
    async def root() -> HTMLResponse:
        return HTMLResponse(text)

    @app.get("/api/jobs")
    async def all_jobs() -> Any:
        return await _answer(jobs.summaries)

    @app.get("/api/events")
    async def all_events(request: Request) -> StreamingResponse:
        return _events(request, jobs.summaries, jobs.summaries)

    @app.get("/api/jobs/{job}")
    async def one_job(job: str) -> Any:
        return await _answer(lambda: jobs.figures(job))

    @app.get("/api/jobs/{job}/events")
    async def job_events(job: str, request: Request, seen: str | None = None) -> StreamingResponse:
        return _events(request, lambda: jobs.version(job), lambda: jobs.figures(job), seen)

    @app.get("/api/jobs/{job}/files/{name:path}")
    async def job_file(job: str, name: str) -> FileResponse:
        path = await _answer(lambda: jobs.file(job, name))
        return FileResponse(path, filename=path.name)

    return app


async def _answer(read: Callable[[], Any]) -> Any:
    try:
        return await run_in_threadpool(read)
    except KeyError as error:
        raise HTTPException(404, f"there is no {error.args[0]!r}") from error
    except ApportionError as error:
        raise HTTPException(503, str(error)) from error


def _events(
    request: Request,
    version: Callable[[], object],
    read: Callable[[], Any],
    seen: str | None = None,
) -> StreamingResponse:
    """Server-sent events: what `read` gives, whenever `version` has changed since the one that the
    page has `seen`."""

    async def stream() -> AsyncIterator[str]:
        before = seen or await _answer(version)
        yield ": the page has this already\n\n"
        while not await request.is_disconnected():
            await asyncio.sleep(_LOOK_EVERY)
            if (now := await _answer(version)) != before:
                before = now
                yield f"data: {json.dumps(await _answer(read), allow_nan=False)}\n\n"

    return StreamingResponse(
        stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )
