"""What the documentation says is run as it is written."""

import re
from pathlib import Path

import pytest
import yaml

from apportion.search.jobs.job import TableJob
from apportion.search.jobs.job_file import load_job, parse_model_job

ROOT = Path(__file__).parents[1]


def test_the_python_of_the_api_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from apportion.search.algorithms import base, registry

    monkeypatch.setitem(
        registry._REGISTRY, "climb", base.Algorithm
    )  # so that what the page registers goes again
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "API.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    scope: dict[str, object] = {"__name__": "docs.api"}
    for block in blocks:
        exec(compile(block, "docs/API.md", "exec"), scope)
    assert (tmp_path / "out" / "model.packed").is_file()
    assert "'retuned'" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "docs/JOBS.md"])
def test_the_jobs_in_the_documentation_are_valid(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    jobs = [yaml.safe_load(block) for block in blocks]
    for job in jobs:
        if "table" in job.get("workload", {}):
            (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
            assert isinstance(load_job(tmp_path / "job.yaml"), TableJob)
        else:  # a section shown alone belongs into the page's first job
            parse_model_job({**jobs[0], **job}, tmp_path / "job.yaml")


def test_every_file_the_documentation_names_is_there() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(
            r"`((?:compressors|db|evaluators|search|docs|examples|benchmarks)/[\w/.]+\.\w+)`",
            page.read_text(),
        ):
            assert (ROOT / name).is_file(), f"{page.name} names {name}"
