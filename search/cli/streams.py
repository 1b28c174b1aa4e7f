"""Standard output and error as shells leave them: closed, full, piped to `head`, in ASCII."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class OutputLostError(Exception):
    """Standard output does not take what is written. Carries `closed`: its reader went away."""

    def __init__(self, reason: str, closed: bool) -> None:
        self.closed = closed
        super().__init__(f"standard output: {reason}")


@contextmanager
def standard_streams() -> Iterator[None]:
    """Inside, a lost standard error is silent, whoever writes to it: what is computed does not
    depend on somebody watching. A lost standard output raises OutputLostError, at the latest when
    the block ends. Letters that a stream's encoding lacks are written as `\\xe9`."""
    before = sys.stdout, sys.stderr
    _open_closed()
    output: Any = _Output(before[0])
    lossy: Any = _Lossy(before[1])
    sys.stdout, sys.stderr = output, lossy
    try:
        yield
        output.flush()
    except OutputLostError:
        output.drop()
        raise
    finally:
        lossy.flush()
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """A file that takes the number of a closed standard stream would be written to by whoever
    writes to that."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


class _Stream:
    """Everything else is the stream's own."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _write(self, text: str) -> None:
        try:
            self._inner.write(text)
        except UnicodeEncodeError:
            encoding = self._inner.encoding or "ascii"
            self._inner.write(text.encode(encoding, "backslashreplace").decode(encoding))


class _Output(_Stream):
    def write(self, text: str) -> int:
        if self._inner is None:
            raise OutputLostError("it is closed", closed=False)
        try:
            self._write(text)
        except OSError as error:
            raise _lost(error) from error
        return len(text)

    def flush(self) -> None:
        if self._inner is not None:
            try:
                self._inner.flush()
            except OSError as error:
                raise _lost(error) from error

    def drop(self) -> None:
        """What is still to be written is not: Python would try once more at its end."""
        if self._inner is not None:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._inner.fileno())


class _Lossy(_Stream):
    def write(self, text: str) -> int:
        if self._inner is not None:
            try:
                self._write(text)
            except OSError:
                self._drop()
        return len(text)

    def flush(self) -> None:
        if self._inner is not None:
            try:
                self._inner.flush()
            except OSError:
                self._drop()

    def isatty(self) -> bool:
        return self._inner is not None and bool(self._inner.isatty())

    def _drop(self) -> None:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._inner.fileno())
        self._inner = None


def _lost(error: OSError) -> OutputLostError:
    return OutputLostError(error.strerror or str(error), closed=error.errno == errno.EPIPE)
