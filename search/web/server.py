"""The web page's server: reads run stores and job folders, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from apportion.compressors.errors import ApportionError
from apportion.search.web.events import Watch, events
from apportion.search.web.guard import LOOPBACK, add_guard
from apportion.search.web.jobs import Jobs, Look
from apportion.search.web.report import page, page_script


def make_app(jobs: Jobs, token: str | None = None, hosts: Sequence[str] = LOOPBACK) -> FastAPI:
    """The application, for those whom `add_guard` lets in. What is read of jobs has its version as
    an ETag; a stream of events tells what has changed since the one that it is given as `seen`."""
    app = FastAPI(title="apportion", docs_url=None, redoc_url=None, openapi_url=None)
    text = page()
    watch = Watch(jobs)
    add_guard(app, page_script(), token, hosts)

    @app.get("/")
    async def root() -> HTMLResponse:
        return HTMLResponse(text)

    @app.get("/api/jobs")
    async def all_jobs(response: Response) -> Any:
        look = await _answer(jobs.look)
        response.headers["ETag"] = jobs.version(look)
        return list(look.rows.values())

    @app.get("/api/events")
    async def all_events(request: Request, seen: str | None = None) -> StreamingResponse:
        def news(look: Look, last: str | None) -> tuple[str, Any] | None:
            told = jobs.since(look, last)
            return None if told is None else (jobs.version(look), told)

        return events(request, watch, news, seen)

    @app.get("/api/jobs/{job}")
    async def one_job(job: str) -> Any:
        return await _answer(lambda: jobs.figures(job))

    @app.get("/api/jobs/{job}/events")
    async def job_events(job: str, request: Request, seen: str | None = None) -> StreamingResponse:
        def news(look: Look, last: str | None) -> tuple[str, Any] | None:
            if jobs.job_version(look, job) == last:
                return None
            found = jobs.figures(job)
            return found["version"], found

        await _answer(lambda: jobs.job_version(jobs.look(), job))  # 404 before a stream begins
        return events(request, watch, news, seen)

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
