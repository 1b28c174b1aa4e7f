"""The folder of an export beside what killed exports left."""

from pathlib import Path

import pytest

from apportion.search.export.staging import staging


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".export-abcdefgh" / "deep").mkdir(parents=True)
    (tmp_path / ".export-abcdefgh" / "model.safetensors").write_text("half")
    (tmp_path / "letter.txt").write_text("mine")
    with staging(tmp_path) as folder:
        (folder / "model.safetensors").write_text("whole")
        assert list(tmp_path.glob(".export-*")) == [folder]
        with staging(tmp_path) as other:  # one that is at work is left alone
            assert folder.is_dir()
            (other / "card.md").write_text("card")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["card.md", "letter.txt", "model.safetensors"]


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    def export() -> None:
        with staging(tmp_path / "out") as folder:
            (folder / "a").write_text("a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        export()
    assert not (tmp_path / "out").exists()
