"""Progress on the terminal: a bar with an estimate of what is left, or a line now and then where
there is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from apportion.search.cli.printing import plain

_SECONDS_BETWEEN_LINES = 10.0


class TerminalProgress:
    """A `Progress` callback (what, done, total) that writes to stderr. `what` up to its first colon
    names the task; the text behind it may change with every call."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            console = Console(stderr=True, markup=False, emoji=False, highlight=False)
            self._bars = Bars(*columns, TimeRemainingColumn(), console=console)
            self._bars.start()
        self._name = ""
        self._task: TaskID | None = None
        self._began = self._printed = time.monotonic()
        self._done = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        what = plain(what)
        name = what.split(":")[0]
        # "compress layer1.0.conv1" and "compress layer1.0.conv2" are one task.
        name = name.split()[0] if name.startswith("compress") else name
        if (
            name != self._name or done < self._done
        ):  # another task, or the next stage of one: its pace is its own
            self._name, self._task = name, None
            self._began = self._printed = time.monotonic()
        self._done = done
        if self._bars is None:
            self._line(what, done, total)
            return
        if self._task is None:
            self._task = self._bars.add_task(what, total=total)
        self._bars.update(self._task, description=what, completed=done, total=total)

    def _line(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        finished = done >= total
        if now - self._printed < _SECONDS_BETWEEN_LINES and not (
            finished and now - self._began > 2
        ):
            return
        self._printed = now
        left = (
            f", {(now - self._began) / done * (total - done):.0f} s left"
            if 0 < done < total
            else ""
        )
        print(
            f"{what}  {done}/{total}, {now - self._began:.0f} s{left}", file=sys.stderr, flush=True
        )

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
