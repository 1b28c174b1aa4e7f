"""Tries malformed inputs against the command line and prints how many get a clear answer.

    python -m tests.robustness.inputs [WORD]      only those whose name holds WORD

Clear: exit status 1 and one line that names the file or field, nothing half-written, within
seconds (a flag's usage error has status 2)."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.robustness import documents, jobs, models, stores, tasks
from tests.robustness.case import Case, judge
from tests.robustness.whole import make_whole


def all_cases(run: str) -> Iterator[Case]:
    """Every case; `run` is the id of the run in the whole folder's store."""
    yield from jobs.cases()
    yield from documents.cases()
    yield from models.cases()
    yield from tasks.cases()
    yield from stores.cases(run)


def main(word: str = "") -> int:
    """Returns how many are not clear."""
    os.environ.pop("APPORTION_STORE", None)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        cases = [case for case in all_cases(make_whole(whole)) if word in case.name]
        wrong = 0
        for case in cases:
            if fault := judge(case, whole, Path(folder) / "spoiled"):
                wrong += 1
                print(f"{case.name}: {fault}", flush=True)
        print(f"{len(cases) - wrong} of {len(cases)} clear")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:2])))
