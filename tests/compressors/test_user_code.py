"""Code that a job names runs only where the operator allows it, however it is named."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apportion.compressors import user_code
from apportion.compressors.errors import ApportionError, CodeError
from apportion.compressors.levels import DENSE
from apportion.evaluators.costs.latency import ask_latency
from apportion.evaluators.models.build import build_model
from apportion.search.algorithms import registry

ROOT = Path(__file__).parents[2]
MODULE = """
from pathlib import Path
Path({sign!r}).touch()
from torch import nn
from apportion.search.algorithms.random import Random as Search
def build(): return nn.Linear(2, 2)
def seconds(layer, level): return 1.0
"""
ENTRY = importlib.metadata.EntryPoint


@pytest.fixture
def sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is there once the user's module has run."""
    sign = tmp_path / "ran"
    (tmp_path / "files").mkdir()
    for name in ("files/1-evil.py", "évil.py", "plain.py"):
        (tmp_path / name).write_text(MODULE.format(sign=str(sign)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda **_: [ENTRY("mine", "plain:Search", "apportion.algorithms")],
    )
    before = set(sys.modules)
    monkeypatch.setenv(user_code._SUBMITTED, "0")
    monkeypatch.delenv(user_code.ALLOW, raising=False)
    yield sign
    for name in set(sys.modules) - before:
        if "evil" in name or "évil" in name or name == "plain":
            del sys.modules[name]


WAYS: dict[str, Callable[[], object]] = {
    "model": lambda: build_model("plain:build"),
    "model with a hyphen": lambda: build_model("files.1-evil:build"),
    "model in other letters": lambda: build_model("évil:build"),
    "algorithm": lambda: registry.resolve("plain:Search"),
    "algorithm with a hyphen": lambda: registry.resolve("files.1-evil:Search"),
    "entry point": lambda: registry.resolve("mine"),
    "latency": lambda: ask_latency("plain:seconds", {"a": [DENSE]}),
    "latency with a hyphen": lambda: ask_latency("files.1-evil:seconds", {"a": [DENSE]}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_submitted_job_runs_code_of_its_own_only_where_that_is_allowed(
    way: str, sign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_code.close_gate()
    with pytest.raises(ApportionError, match=f"{user_code.ALLOW}=1"):
        WAYS[way]()
    assert not sign.exists()
    monkeypatch.setenv(user_code.ALLOW, "1")
    WAYS[way]()
    assert sign.exists()


@pytest.mark.parametrize("way", WAYS)
def test_on_the_users_own_machine_it_runs(way: str, sign: Path) -> None:
    WAYS[way]()
    assert sign.exists()


def test_nothing_else_imports_by_a_name_that_is_not_written_in_the_source() -> None:
    """What is imported elsewhere by name begins with our own package's, is a dependency's that
    stands there as it is, or was registered as a weight format by code that runs already."""
    found = []
    for room in ("compressors", "db", "evaluators", "search"):
        for path in sorted((ROOT / room).rglob("*.py")):
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            found += [f"{path.relative_to(ROOT)}: {ast.unparse(n)}" for n in calls if _imports(n)]
    assert found == [
        "compressors/formats.py: importlib.import_module(self.where)",
        "compressors/user_code.py: importlib.import_module(module)",
    ]


def _imports(call: ast.Call) -> bool:
    if ast.unparse(call.func) not in ("importlib.import_module", "import_module", "exec", "eval"):
        return False
    text = ast.unparse(call.args[0])
    return not text.lstrip("f'\"").startswith("apportion.")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise RuntimeError('broken')", r"cannot be imported \(RuntimeError: broken\)"),
        ("raise SystemExit('no licence')", r"cannot be imported \(SystemExit: no licence\)"),
        ("def net(:", r"cannot be imported \(SyntaxError: "),
        ("other = 3", "has no 'net'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"broken{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CodeError, match=said):
        registry.resolve(f"{name}:net")
