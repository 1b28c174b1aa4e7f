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
    assert len(blocks) == 5
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


FAILURES = {
    "a worker dies": "contracts/test_ray_pool.py::test_a_killed_worker_is_replaced",
    "a worker is killed for want of memory": "contracts/test_ray_pool.py"
    "::test_workers_killed_for_memory_are_replaced_after_pauses_that_grow",
    "a node is lost": "contracts/test_ray_pool.py::test_a_node_is_removed_and_another_one_joins",
    "the autoscaler is slow": "service/test_autoscaler.py"
    "::test_nodes_come_for_jobs_and_go_after_them",
    "the job's own process": "service/test_service.py"
    "::test_cancelled_killed_and_resumed_a_job_ends_as_if_nothing_had_happened",
    "a job is cancelled": "service/test_cancel.py"
    "::test_a_cancelled_job_says_so_before_anything_else_and_in_the_end",
    "the head is started anew": "service/test_forgotten.py"
    "::test_a_restarted_heads_jobs_are_found_in_the_storage",
    "this machine's job server": "service/test_forgotten.py"
    "::test_the_keeper_outlives_its_job_server_while_jobs_give_signs",
    "files do not arrive": "service/test_archive.py"
    "::test_a_package_that_did_not_arrive_as_it_was_sent_is_refused",
    "two heads share": "service/test_address.py"
    "::test_a_heads_commands_run_by_rays_interpreter_on_the_cluster_that_was_asked",
    "the PostgreSQL server restarts": "contracts/test_run_store.py"
    "::test_a_server_that_restarts_loses_no_trial_and_counts_none_twice",
    "the PostgreSQL server freezes": "contracts/test_run_store.py"
    "::test_a_frozen_server_is_an_error_and_the_store_works_once_it_is_thawed",
    "the disk is full": "db/test_build.py::test_a_full_disk_leaves_nothing_half_written",
    "a clock is wrong": "contracts/test_leases.py::test_wall_clocks_count_for_nothing",
    "a job is resumed while it runs": "contracts/test_leases.py::test_a_job_is_claimed_once",
}
"""Rows of the table of failures in docs/CLUSTER.md, by their beginning, and the test of each."""


def test_each_failure_that_the_documentation_tells_of_has_its_test() -> None:
    page = (ROOT / "docs" / "CLUSTER.md").read_text()
    table = page.partition("| what | then | after |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [row.split("|")[1].strip() for row in table.splitlines()]
    assert len(rows) == len(FAILURES)
    for row, (beginning, test) in zip(rows, FAILURES.items(), strict=True):
        assert row.startswith(beginning)
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text()
