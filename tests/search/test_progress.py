import pytest

from apportion.search.cli import progress


def test_the_next_stage_of_a_task_has_its_own_estimate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    report = progress.TerminalProgress()
    for stage in range(2):
        for done in range(1, 5):
            report("compress fc, rows", done, 4)
            now += 20.0 if stage == 0 else 60.0
    lines = capsys.readouterr().err.splitlines()
    assert "compress fc, rows  2/4, 20 s, 20 s left" in lines
    assert "compress fc, rows  2/4, 60 s, 60 s left" in lines
