"""Jobs in folders of any name: the whole way, from the job file to the exported model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from apportion.search.cli.main import main
from tests.search.test_tables import job

OLD = Path(__file__).parents[1] / "fixtures" / "v0_1_0"


@pytest.mark.parametrize(
    "name", ["a b", "what?ever", "#1", "c%20d", "~", "größe-层", "[x]*", "a=b&c"]
)
def test_a_job_on_a_table(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    job(folder, search={"algorithms": ["random"], "evaluations": 5, "seeds": [0]})
    assert main(["search", str(folder / "job.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    run = found["league"][0]["run"]
    for command in (["runs"], ["show", run], ["compare", run]):
        assert main([*command, "--store", found["store"]]) == 0  # as it was printed
    monkeypatch.chdir(folder)
    assert main(["show", run]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (folder / "apportion.sqlite").is_file()


def test_a_job_with_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "what? c%20d #1 ~größe 层"
    shutil.copytree(OLD, folder)
    (folder / "store.db").unlink()
    text = (folder / "job.yaml").read_text().replace("evaluations: 60", "evaluations: 3")
    (folder / "job.yaml").write_text(text)
    assert main(["search", str(folder / "job.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    command = ["export", found["league"][0]["run"], "--store", found["store"]]
    assert main([*command, "-o", str(folder / "out?"), "--format", "safetensors", "onnx"]) == 0
    assert (folder / "out?" / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
