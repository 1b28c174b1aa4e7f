"""One malformed input: what is put in a job's folder, which command meets it, and whether the
answer is clear."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from apportion.search.cli.main import main

MOST_SECONDS = 60.0
_KEPT = re.compile(r"(apportion|runs)\.sqlite(-wal|-shm)?")
"""What a command may leave: the store that a search opens before it reads anything."""


@dataclass(frozen=True)
class Case:
    """`prepare` spoils a copy of the whole folder; the command `arguments`, in which FOLDER stands
    for that, must then end with status 1 (2 for a flag) and one line that `says` matches."""

    name: str
    prepare: Callable[[Path], object]
    arguments: tuple[str, ...]
    says: str


def judge(case: Case, whole: Path, folder: Path) -> str:
    """'' for a clear answer; else what is not clear about it. `folder` is made, and removed."""
    shutil.copytree(whole, folder, symlinks=True)
    try:
        case.prepare(folder)
        before = _files(folder)
        start = time.monotonic()
        status, text = _run([part.replace("FOLDER", str(folder)) for part in case.arguments])
        seconds = time.monotonic() - start
        left = sorted(
            name for name in _files(folder) - before if not _KEPT.fullmatch(Path(name).name)
        )
        return _fault(case, status, text, seconds, left)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fault(case: Case, status: object, text: str, seconds: float, left: list[str]) -> str:
    lines = [line for line in text.splitlines() if line.startswith("apportion: ")]
    usage = [line for line in text.splitlines() if line.startswith(("apportion ", "usage: "))]
    told = lines[-1] if lines else ""
    if status == 2 and usage and re.search(case.says, text):
        return ""
    if status != 1:
        return f"status {status}: {_last(text)}"
    if "Traceback" in text or len(lines) != 1 or not text.rstrip().endswith(told):
        return f"not one line: {_last(text)}"
    if not re.search(case.says, told):
        return f"does not say {case.says!r}: {told[:300]}"
    if len(told) > 1000:
        return f"a line of {len(told)} characters"
    if left:
        return f"leaves {', '.join(left)}"
    return f"took {seconds:.0f} s" if seconds > MOST_SECONDS / 2 else ""


def _run(arguments: list[str]) -> tuple[object, str]:
    """Exit status, or the error that escaped; and what was printed on stderr."""
    out, err = io.StringIO(), io.StringIO()
    handlers = logging.getLogger().handlers[:]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _deadline():
            return main(arguments), err.getvalue()
    except SystemExit as error:
        return error.code, err.getvalue()
    except BaseException as error:  # what escapes is what is looked for
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:200]}", err.getvalue()
    finally:
        logging.getLogger().handlers[:] = handlers


class TooLongError(BaseException):
    """No handler of the product's takes it for an error of its own."""


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLongError(f"after {MOST_SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def _last(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-2:])[-300:]
