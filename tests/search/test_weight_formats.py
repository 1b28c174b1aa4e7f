"""Jobs whose levels are weight formats: built, searched, trained, exported."""

from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.db.layers.codec import stored_bits
from apportion.db.layers.packed import load_packed
from apportion.db.runs.store import RunStore
from apportion.search.export.exporting import export
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import prepare, run_search


@pytest.mark.parametrize(
    ("levels", "train"),
    [(["w4g16", "gptq:w3g16"], {}), (["2:4+mxfp4", "rtn:nvfp4"], {"finetune": {"epochs": 1}})],
)
def test_a_job_goes_the_whole_way(tmp_path: Path, levels: list[str], train: dict[str, Any]) -> None:
    content: dict[str, Any] = {
        "workload": {"data": {"kind": "digits"}, "calibration_samples": 128, "batch_size": 64},
        "database": {"path": str(tmp_path / "db"), "levels": ["dense", *levels]},
        "budgets": {"bits": 0.4},
        "search": {"algorithms": ["dp"], "evaluations": 2},
        "recovery": train,
    }
    job = parse_model_job(content, tmp_path / "job.yaml")
    assert job.store is not None
    with prepare(job) as problem:
        problem.database.verify()
        result = run_search(problem, RunStore(job.store))[0]
        formats = ("compressed", "onnx")
        exported = export(result, problem, tmp_path / "out", formats=formats)
        profile = problem.profile(result.pick.candidate)
        chosen = [name for name, level in profile.items() if not level.is_dense]
        assert chosen
        state = load_packed(exported.files["model.packed"])
        for name in chosen:
            level = profile[name]
            grid, record = problem.database.grid(name, level), problem.database.layers[name]
            assert grid is not None
            assert grid.format == (level.quantization and level.quantization.format)
            matrix = state[f"{name}.weight"].movedim(1, -1).flatten(1)
            kept = matrix != 0
            assert torch.equal(grid.values(grid.codes(matrix))[kept], matrix[kept])
            entry = problem.database.entry(name, level)
            assert entry.bits == stored_bits(problem.database._parts(name, entry))
            assert entry.bits < 6 * record.size
    notes = exported.content["exports"]["model.onnx"]["notes"]
    assert any("floats" in note and chosen[0] in note for note in notes)
    dense = exported.content["accuracy"]["dense"]
    assert exported.content["exports"]["model.packed"]["accuracy"] > dense - 10
