"""Algorithms of a user's own that do what they may not: the run fails and names them."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apportion.compressors.errors import AlgorithmError, ConfigurationError, JobError
from apportion.db.runs.store import Run
from apportion.search.algorithms import registry
from apportion.search.algorithms.base import Algorithm, Trial
from apportion.search.algorithms.registry import create, resolve
from apportion.search.jobs.job_file import parse_job
from apportion.search.runs.loop import RunResult, search
from tests.search.spaces import random_space
from tests.search.test_run import Counting, store_at

SPACE = random_space(5, layers=8, levels=6)
CHEAPEST = SPACE.cheapest()


class Asking(Algorithm):
    """Asks for what a test gives it, after a start that is fine."""

    answer: Any = ()

    def propose(self) -> list[Trial]:
        return self.answer() if callable(self.answer) else self.answer


def run(folder: Path, algorithm: Algorithm) -> RunResult:
    store = store_at(folder / "s.sqlite")
    made = store.add_run(Run("mine-0", "j", "mine", {}, 0, 60))
    return search(algorithm, SPACE, Counting(), store, made, "p")


def asking(answer: Any) -> Algorithm:
    algorithm = Asking(SPACE, np.random.default_rng(0), 60)
    algorithm.answer = answer
    return algorithm


def raising(error: BaseException) -> Any:
    def answer() -> None:
        raise error

    return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([Trial((0,) * 8)], r"over budget: flops 1 \(at most 0\.\d+\)"),
        ([Trial(CHEAPEST), Trial((0,) * 8)], "over budget: flops"),
        ([Trial(CHEAPEST[:-1])], "a candidate of 7 levels for 8 layers"),
        ([Trial((*CHEAPEST, 0))], "a candidate of 9 levels for 8 layers"),
        ([Trial((6, *CHEAPEST[1:]))], "layer 'layer0': level index 6, valid are 0 to 5"),
        ([Trial((-1, *CHEAPEST[1:]))], "level index -1, valid are 0 to 5"),
        ([Trial((1.5, *CHEAPEST[1:]))], "whole numbers are needed"),  # type: ignore[arg-type]
        ([Trial(tuple(map(float, CHEAPEST)))], "whole numbers are needed"),  # type: ignore[arg-type]
        ([Trial(("a",) * 8)], "whole numbers are needed"),  # type: ignore[arg-type]
        ([Trial(None)], "whole numbers are needed"),  # type: ignore[arg-type]
        ([Trial(CHEAPEST, 0.0)], "share 0.0 of the calibration data"),
        ([Trial(CHEAPEST, 1.5)], "share 1.5 of the calibration data"),
        ([Trial(CHEAPEST, -1.0)], "share -1.0 of the calibration data"),
        ([Trial(CHEAPEST, math.nan)], "share nan of the calibration data"),
        ([Trial(CHEAPEST, "all")], "share 'all' of the calibration data"),  # type: ignore[arg-type]
        ([Trial(CHEAPEST, bound=math.nan)], "the bound nan"),
        ([CHEAPEST], "which is no trial"),
        (None, r"ask\(\) gave None, not a list of trials"),
        (Trial(CHEAPEST), r"ask\(\) gave Trial"),
        (raising(ZeroDivisionError("division by zero")), r"ask\(\) raised ZeroDivisionError: div"),
        (raising(SystemExit(3)), r"ask\(\) raised SystemExit: 3"),
        (raising(KeyError()), r"ask\(\) raised KeyError$"),
    ],
)
def test_what_an_algorithm_may_not_ask_for(tmp_path: Path, answer: Any, message: str) -> None:
    with pytest.raises(AlgorithmError, match=f"algorithm 'mine': .*{message}") as caught:
        run(tmp_path, asking(answer))
    assert caught.value.algorithm == "mine"
    assert "\n" not in str(caught.value)
    store = store_at(tmp_path / "s.sqlite")
    assert store.run("mine-0").state == "failed"
    scored = [trial.candidate for trial in store.trials("mine-0")]
    assert scored
    assert all(SPACE.feasible(candidate) for candidate in scored)


def test_numpys_whole_numbers_are_whole_numbers(tmp_path: Path) -> None:
    class Once(Asking):
        def learn(self, trials: Sequence[Trial]) -> None:  # noqa: ARG002
            if self.answer and self.answer[0].candidate in self.known:
                self.answer = []

    algorithm = Once(SPACE, np.random.default_rng(0), 60)
    algorithm.answer = [Trial(tuple(np.array(CHEAPEST)))]
    result = run(tmp_path, algorithm)
    assert result.trials[-1].candidate == CHEAPEST
    assert all(type(level) is int for level in result.trials[-1].candidate)


@pytest.mark.parametrize("method", ["learn", "notes"])
def test_what_else_an_algorithm_raises(tmp_path: Path, method: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of luck\nand of lines")

    algorithm = asking([])
    setattr(algorithm, method, fail)
    with pytest.raises(AlgorithmError, match="raised RuntimeError: out of luck$") as caught:
        run(tmp_path, algorithm)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("notes", [{"array": np.zeros(2)}, ["a"], {1: {2}}])
def test_notes_that_are_no_json(tmp_path: Path, notes: Any) -> None:
    algorithm = asking([])
    algorithm.notes = lambda: notes  # type: ignore[method-assign]
    with pytest.raises(AlgorithmError, match=r"algorithm 'mine': notes\(\) gave what is no JSON"):
        run(tmp_path, algorithm)


def test_an_algorithm_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class Raising(Asking):
        def __init__(self, *_: object) -> None:
            raise OSError("no licence")

    class Abstract(Algorithm):
        pass

    for cls, message in ((Raising, "OSError: no licence"), (Abstract, "TypeError: .*abstract")):
        monkeypatch.setitem(registry._REGISTRY, "mine", cls)
        with pytest.raises(AlgorithmError, match=f"'mine': raised as it was made: {message}"):
            create("mine", SPACE, np.random.default_rng(0), 10)


BROKEN = {
    "syntax": ("def f(:\n", "SyntaxError"),
    "licence": (
        "raise RuntimeError('no licence\\nfor this host')\n",
        r"RuntimeError: no licence\)$",
    ),
    "leaving": ("import sys\nsys.exit(2)\n", "SystemExit: 2"),
    "missing": ("import no_such_package\n", "ModuleNotFoundError: No module named 'no_such_pack"),
    "empty": ("", "module 'empty' has no 'Mine'"),
    "dividing": ("1 / 0\n", "ZeroDivisionError"),
}


@pytest.mark.parametrize("module", BROKEN)
def test_modules_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    text, message = BROKEN[module]
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(
        ConfigurationError, match=f"algorithm '{module}:Mine': .*{message}"
    ) as caught:
        resolve(f"{module}:Mine")
    assert module == "empty" or caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)


def test_a_jobs_error_leads_to_the_modules_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "halved.py").write_text("def half(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    content = {
        "workload": {"data": {"kind": "digits"}},
        "database": {"path": "db"},
        "search": {"algorithms": ["halved:Mine"]},
    }
    with pytest.raises(JobError, match="search.algorithms: algorithm 'halved:Mine'") as caught:
        parse_job(content, tmp_path / "job.yaml")
    chain: BaseException | None = caught.value
    while chain is not None and not isinstance(chain, SyntaxError):
        chain = chain.__cause__
    assert chain is not None
