"""Progress: how long work says how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with what is being done, how many steps are done, and how many there are. `what` up to
    its first colon names the task. It must return quickly, and may raise to stop the work
    (KeyboardInterrupt)."""

    def __call__(self, what: str, done: int, total: int, /) -> None: ...


def silent(what: str, done: int, total: int, /) -> None:
    """Tells nobody."""
