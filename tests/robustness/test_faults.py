"""Faults in real searches: a few cells of the script."""

import pytest

from tests.robustness.faults import main


@pytest.mark.slow
def test_a_few_faults_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPORTION_STORE", raising=False)
    assert main("^(kill -9|two at once), (builds|exports)$") == 0
