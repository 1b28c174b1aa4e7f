"""Compiled code is kept, and made anew when a module below changes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba", reason="apportion[fast] is not installed")

from apportion.compressors.elimination import compiled

BELOW = "from numba import njit\n\n@njit\ndef step(x):\n    return x + {}\n"
ABOVE = """
import below
from apportion.compressors.elimination.compiled import compiled

@compiled(below)
def run(x):
    return below.step(x)

print(run(1), sum(run.stats.cache_hits.values()))
"""


def test_what_is_kept_follows_the_modules_below(tmp_path: Path) -> None:
    (tmp_path / "above.py").write_text(ABOVE)

    def result(added: int) -> str:
        (tmp_path / "below.py").write_text(BELOW.format(added))
        command = [sys.executable, "-B", "-c", "import above"]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert result(1) == "2 0"
    assert result(1) == "2 1"  # kept
    assert result(5) == "6 0"  # and not for longer


def test_nothing_is_kept_by_a_numba_that_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, bool]] = []

    def njit(**options: bool) -> Any:
        asked.append(options)
        return lambda function: function

    monkeypatch.setattr(compiled, "njit", njit)

    def own() -> None:
        pass

    assert compiled.compiled()(own) is own
    assert asked == [{"parallel": True, "cache": True}, {"parallel": True}]
