"""The recipes of CONTRIBUTING.md are followed as they are written."""

import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

from apportion.compressors import formats
from apportion.compressors.kinds import products
from apportion.evaluators.tasks import registry as tasks
from apportion.search.export import registry
from apportion.search.export.formats import Format

ROOT = Path(__file__).parents[1]


def recipe(heading: str, language: str) -> list[str]:
    """The blocks of code of one recipe, in a language; commands have none."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return [code for name, code in blocks if name == language]


def test_an_algorithm_passes_the_contract_suite(tmp_path: Path) -> None:
    (code,) = recipe("Add an algorithm", "python")
    (tmp_path / "descend.py").write_text(code)
    _, command = recipe("Add an algorithm", "")
    python, *arguments = shlex.split(command)
    assert python == ".venv/bin/python"
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 10


def test_an_export_format_exports_the_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._FORMATS, "npz", Format)  # so that the recipe's goes again
    scope: dict[str, object] = {"__name__": "contributing"}
    for code in recipe("Add an export format", "python"):
        exec(compile(code, "CONTRIBUTING.md", "exec"), scope)
    tests = [value for name, value in scope.items() if name.startswith("test_") and callable(value)]
    assert len(tests) == 1
    tests[0](tmp_path)


def test_a_kind_of_layer_records_the_error_that_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "_READERS", dict(products._READERS))
    scope: dict[str, object] = {"__name__": "contributing"}
    for code in recipe("Add a kind of layer", "python"):
        exec(compile(code, "CONTRIBUTING.md", "exec"), scope)
    (test,) = (v for name, v in scope.items() if name.startswith("test_") and callable(v))
    test()


def test_a_weight_format_is_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_NAMED", dict(formats._NAMED))
    module = types.ModuleType("nf4")
    monkeypatch.setitem(sys.modules, "nf4", module)
    for code in recipe("Add a weight format", "python"):
        exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    module.test_it_comes_back_to_the_bit()


def test_a_task_goes_with_its_model_and_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    scope: dict[str, object] = {"__name__": "contributing"}
    for code in recipe("Add a task", "python"):
        exec(compile(code, "CONTRIBUTING.md", "exec"), scope)
    (test,) = (v for name, v in scope.items() if name.startswith("test_") and callable(v))
    test()
