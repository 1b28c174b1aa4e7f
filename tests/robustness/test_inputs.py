"""Malformed inputs: a sample in every run of the tests, all of them in the slow ones."""

from pathlib import Path

import pytest

from tests.robustness.case import Case, judge
from tests.robustness.inputs import all_cases
from tests.robustness.whole import make_whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Case]]:
    folder = tmp_path_factory.mktemp("robustness") / "whole"
    return folder, list(all_cases(make_whole(folder)))


def _not_clear(whole: tuple[Path, list[Case]], tmp_path: Path, step: int) -> dict[str, str]:
    folder, cases = whole
    found = {case.name: judge(case, folder, tmp_path / "spoiled") for case in cases[::step]}
    return {name: fault for name, fault in found.items() if fault}


def test_there_are_many(whole: tuple[Path, list[Case]]) -> None:
    names = [case.name for case in whole[1]]
    assert len(names) >= 300
    assert len(set(names)) == len(names)


def test_a_sample_gets_a_clear_answer(whole: tuple[Path, list[Case]], tmp_path: Path) -> None:
    assert _not_clear(whole, tmp_path, 13) == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_get_a_clear_answer(whole: tuple[Path, list[Case]], tmp_path: Path) -> None:
    assert _not_clear(whole, tmp_path, 1) == {}
