"""How a job's process keeps its state true: state.json, a sign of life beside it, and its log."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

from apportion.compressors.errors import ApportionError
from apportion.search.service.folder import BEAT, ENDED, MARK, JobFolder, JobState
from apportion.search.service.mirror import Mirror

_WRITE_EVERY, _MARK_EVERY, _LINE_EVERY = 2.0, 5.0, 10.0


class Reporter:
    """A `Progress` callback that keeps the state file, and the log, up to date. `look` tells the
    runs."""

    def __init__(self, folder: JobFolder, state: JobState, mirror: Mirror) -> None:
        self._folder, self.state, self._mirror = folder, state, mirror
        self.look: Callable[[], None] = lambda: None
        self._written = self._marked = self._lined = -_LINE_EVERY
        self._over = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="sign of life", daemon=True)

    def start(self) -> None:
        """Give signs of life from now on, however long a step takes."""
        self._beats.start()

    def __call__(self, what: str, done: int, total: int) -> None:
        self.state.step = (what, done, total)
        now = time.monotonic()
        if now - self._lined > _LINE_EVERY:
            self._lined = now
            print(f"{what}  {done}/{total}", flush=True)
        if now - self._written > _WRITE_EVERY:
            self.look()
            self.write()

    def enter(self, state: str) -> None:
        """Go on to the next state."""
        self.state.state, self.state.step = state, None
        print(state, flush=True)
        self.look()
        self.write(mark=True)
        if state in ENDED:
            self._over.set()
        self._mirror.push(f"jobs/{self.state.job}/state.json")

    def cancel(self) -> None:
        """Say at once that the job is cancelled: what is left to do may take longer than this
        process is given. For a signal's handler: nothing is printed."""
        self.state.state, self.state.ended = "cancelled", time.time()
        try:
            self._folder.write_state(self.state)
        except ApportionError:
            return  # the disk is full; `enter` will say so

    def write(self, mark: bool = False) -> None:
        self._written = now = time.monotonic()
        self._folder.write_state(self.state)
        if mark or now - self._marked > _MARK_EVERY:
            self._marked = now
            print(MARK + json.dumps(self.state.to_json()), flush=True)

    def _beat(self) -> None:
        while not self._over.is_set():
            self._folder.beat()
            self._over.wait(BEAT)
