"""What changes, told to open pages: server-sent events from one look for all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from apportion.compressors.errors import ApportionError
from apportion.search.web.jobs import Jobs, Look

_KEEP_ALIVE = 15.0
"""Seconds without news after which a stream says that it is there: proxies close idle ones."""


class Watch:
    """Looks at the jobs again and again while a page is open, once for all pages."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Condition()
        self._look = Look()
        self.trouble: str | None = None

    @property
    def pause(self) -> float:
        """Seconds between two looks."""
        return self._jobs.pause

    async def _run(self) -> None:
        while self._watchers:
            try:
                self._look = await run_in_threadpool(self._jobs.look)
                self.trouble = None
            except Exception as error:  # whatever it is, pages that are open must learn of it
                self.trouble = str(error) or type(error).__name__
            async with self._news:
                self._news.notify_all()
            await asyncio.sleep(self._jobs.pause)
        self._task = None

    async def looks(self) -> AsyncIterator[Look | None]:
        """Each new look; None where nothing came for so long that a sign of life is due."""
        self._watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            while True:
                try:
                    async with self._news:
                        await asyncio.wait_for(self._news.wait(), _KEEP_ALIVE)
                except TimeoutError:
                    yield None
                    continue
                yield self._look
        finally:
            self._watchers -= 1


def events(
    request: Request,
    watch: Watch,
    news: Callable[[Look, str | None], tuple[str, Any] | None],
    seen: str | None,
) -> StreamingResponse:
    """Server-sent events.

    Args:
        request: Who asks; a browser that connects again says itself what it had last.
        watch: Looks at the jobs.
        news: What there is to tell at a look to one who has seen a version: the version after it,
            and the content; None for nothing. It may read files: it runs in a thread.
        seen: The version that the page was loaded with.

    Returns:
        The stream. It ends where `news` raises KeyError: what is asked for is there no more.
    """

    async def stream() -> AsyncIterator[str]:
        last, quiet, trouble = request.headers.get("last-event-id", seen), 0.0, None
        yield ": open\n\n"
        async for look in watch.looks():
            if await request.is_disconnected():
                return
            quiet += watch.pause
            told = None
            if look is not None and watch.trouble is None:
                with suppress(ApportionError):  # the store is away: the next look says so
                    try:
                        told = await run_in_threadpool(news, look, last)
                    except KeyError:
                        return
            if told is not None:
                last, quiet = told[0], 0.0
                yield f"id: {last}\ndata: {json.dumps(told[1], allow_nan=False)}\n\n"
            elif watch.trouble != trouble:
                trouble = watch.trouble
                yield f"event: trouble\ndata: {json.dumps(trouble)}\n\n"
            elif look is None or quiet >= _KEEP_ALIVE:
                quiet = 0.0
                yield ": still here\n\n"

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)
