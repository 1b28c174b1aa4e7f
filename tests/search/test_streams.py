"""The command line in shells: output that is piped away, closed or full, text that is not markup,
and what escapes as one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from apportion.db.runs.sqlite import sqlite_url
from apportion.db.runs.store import Run, RunStore
from apportion.search.cli import main as command_line
from apportion.search.cli import progress
from apportion.search.cli.main import main
from apportion.search.cli.printing import table
from tests.search.test_tables import job

APPORTION = f"'{sys.executable}' -m apportion"


def shell(line: str, **environment: str) -> tuple[list[int], str, str]:
    """The exit statuses of a pipeline's commands, stdout, and stderr."""
    script = f'{line}\necho "statuses: ${{PIPESTATUS[*]}}" >&9'
    done = subprocess.run(
        ["bash", "-c", f"exec 9>&1\n{script}"],
        capture_output=True,
        text=True,
        check=False,
        env={**_environment(), **environment},
    )
    out, _, statuses = done.stdout.rpartition("statuses: ")
    return [int(status) for status in statuses.split()], out, done.stderr


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONIOENCODING"}


@pytest.fixture
def many_runs(tmp_path: Path) -> str:
    """URL of a store whose list of runs fills a pipe."""
    url = sqlite_url(tmp_path / "runs.sqlite")
    store = RunStore(url)
    store.add_job("j", {})
    for seed in range(1000):
        store.add_run(Run(f"randöm-s{seed}-1a2b3c4d", "j", "random", {}, seed, 10.0))
    store.close()
    return url


def test_listing_commands_may_lose_their_reader(many_runs: str) -> None:
    for command in (f"runs --store '{many_runs}'", f"runs --json --store '{many_runs}'", "schema"):
        statuses, _, err = shell(f"{APPORTION} {command} | true")
        assert (statuses, err) == ([0, 0], ""), command


def test_a_full_disk_and_a_closed_output_are_told(many_runs: str) -> None:
    for command in (f"runs --store '{many_runs}'", "schema"):
        for where, said in (("> /dev/full", "No space left on device"), (">&-", "it is closed")):
            statuses, _, err = shell(f"{APPORTION} {command} {where}")
            assert statuses == [1], (command, where)
            assert err == f"apportion: standard output: {said}; what was finished is kept\n"
    assert shell(f"{APPORTION} runs --store '{many_runs}' >&- 2>&-")[0] == [1]
    assert shell(f"{APPORTION} runs --store '{many_runs}' 2>&-")[0] == [0]


def test_letters_that_an_encoding_lacks_are_escaped(many_runs: str) -> None:
    line = f"{APPORTION} runs --store '{many_runs}'"
    statuses, out, err = shell(line, PYTHONIOENCODING="ascii")
    assert (statuses, err) == ([0], "")
    assert "rand\\xf6m-s0-1a2b3c4d" in out


@pytest.mark.parametrize("lost", ["2>&1 >/dev/null | true", "2>&-", "2> /dev/full"])
def test_a_search_that_nobody_watches_goes_on_to_its_end(tmp_path: Path, lost: str) -> None:
    job(tmp_path, search={"algorithms": ["random"], "evaluations": 400, "seeds": [0]})
    chatty = tmp_path / "chatty.py"
    chatty.write_text(
        "import sys, runpy\n"
        "from apportion.search.cli import progress\n"
        "progress._SECONDS_BETWEEN_LINES = 0.0\n"
        "sys.argv[0] = 'apportion'\n"
        "runpy.run_module('apportion', run_name='__main__')\n"
    )
    statuses, _, _ = shell(f"'{sys.executable}' {chatty} search {tmp_path / 'job.yaml'} {lost}")
    assert statuses[0] == 0
    (run,) = RunStore(sqlite_url(tmp_path / "apportion.sqlite"), reading=True).runs()
    assert (run.state, run.told) == ("finished", 400)


def test_what_is_done_but_not_shown_is_no_success(tmp_path: Path) -> None:
    job(tmp_path, search={"algorithms": ["random"], "evaluations": 20, "seeds": [0]})
    statuses, _, err = shell(f"{APPORTION} search {tmp_path / 'job.yaml'} | true")
    assert statuses == [1, 0]
    assert "standard output: Broken pipe; what was finished is kept" in err
    (run,) = RunStore(sqlite_url(tmp_path / "apportion.sqlite"), reading=True).runs()
    assert run.state == "finished"


def test_a_broken_pipe_of_anything_else_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_options: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(command_line, "runs_command", broken)
    assert main(["runs"]) == 1
    assert capsys.readouterr().err == "apportion: Broken pipe (--debug shows where)\n"


NAMES = [
    "block[a].conv",
    "block[b].conv",
    "head[/x]",
    "head:heart:",
    "[bold]x[/bold]",
    "[red",
    "層",
]


def test_no_name_is_markup_in_tables(capsys: pytest.CaptureFixture[str]) -> None:
    table(("layer", "[red]x", ":heart:"), [{"layer": n, "[red]x": n, ":heart:": 1} for n in NAMES])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "[red]x", ":heart:"]
    assert [line.split() for line in lines[1:]] == [[name, name, "1"] for name in NAMES]


def test_control_characters_are_not_sent_to_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table(("layer",), [{"layer": "a\x1b[31m\r\nb"}])
    assert capsys.readouterr().out.splitlines()[1].split() == ["a\\x1b[31m\\r\\nb"]


def test_no_name_is_markup_in_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(Console):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options, force_terminal=True, record=True, width=200)
            self.file = open("/dev/null", "w")  # noqa: SIM115
            made.append(self)

    made: list[Console] = []
    monkeypatch.setattr(progress, "Console", Terminal)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with progress.TerminalProgress() as report:
        for name in NAMES:
            report(f"measure {name}", 1, 2)
    shown = made[0].export_text()
    assert all(f"measure {name}" in shown for name in NAMES)


def test_ids_are_never_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    url = sqlite_url(tmp_path / "runs.sqlite")
    store = RunStore(url)
    store.add_job("1a2b3c4d", {})
    run = f"{'Own' * 60}-s0-58fa45aa"
    store.add_run(Run(run, "1a2b3c4d", "own:Own", {}, 0, 10.0))
    _, out, _ = shell(f"{APPORTION} runs --store '{url}'", COLUMNS="40")
    assert run in out
    assert "…" not in out


ESCAPES: dict[str, tuple[Callable[[], Exception], str]] = {
    "bug": (lambda: ValueError("bad\nthing"), "unexpected ValueError: bad"),
    "silent": (lambda: RecursionError(), "unexpected RecursionError"),
    "file": (
        lambda: PermissionError(13, "Permission denied", "/x/y"),
        "Permission denied: /x/y",
    ),
    "long": (lambda: KeyError("k" * 10_000), "unexpected KeyError: 'kkk"),
}


@pytest.mark.parametrize("kind", ESCAPES)
def test_whatever_escapes_is_one_line_and_debug_shows_where(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, said = ESCAPES[kind]

    def fail(_options: object) -> None:
        raise make()

    monkeypatch.setattr(command_line, "runs_command", fail)
    assert main(["runs"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"apportion: {said}")
    assert err.endswith(" (--debug shows where)\n")
    assert err.count("\n") == 1
    assert len(err) < 700
    for line in (["runs", "--debug"], ["--debug", "runs"]):
        assert main(line) == 1
        err = capsys.readouterr().err
        assert "Traceback" in err
        assert "in fail" in err


def test_every_command_takes_debug(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nothing"])
    commands = [[name] for name in re.findall("'([a-z]+)'", capsys.readouterr().err)[1:]]
    assert len(commands) > 15
    commands.remove(["latency"])
    for command in [*commands, ["latency", "measure"], ["latency", "check"]]:
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        assert "--debug" in capsys.readouterr().out, command
