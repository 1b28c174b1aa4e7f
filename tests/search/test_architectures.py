"""Real architectures from build to a verified export, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from apportion.db.runs.store import RunStore
from apportion.search.export.exporting import export
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import prepare, run_search

pytest.importorskip("onnxruntime", reason="apportion[onnx] is not installed")


def small_transformer() -> nn.Module:
    """torchvision's vision transformer in small."""
    import torch
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5)


def images(folder: Path, size: int, classes: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    for name in ("calibration", "test"):
        images = rng.integers(0, 256, (8, size, size, 3), dtype=np.uint8)
        labels = rng.integers(0, classes, 8)
        np.savez(folder / f"{name}.npz", images=images, labels=labels)
    paths = {name: str(folder / f"{name}.npz") for name in ("calibration", "test")}
    return {"kind": "npz", **paths}


@pytest.mark.parametrize(
    ("model", "size", "classes", "share"),
    [
        (f"{__name__}:small_transformer", 32, 5, 0.9),
        *(
            pytest.param(f"torchvision:{name}", size, 1000, 0.95, marks=pytest.mark.slow)
            for name, size in [
                ("googlenet", 64),
                ("convnext_tiny", 64),
                ("swin_t", 64),
                ("vit_b_16", 224),
            ]
        ),
    ],
)
def test_models_build_search_and_export(
    model: str, size: int, classes: int, share: float, tmp_path: Path
) -> None:
    content: dict[str, Any] = {
        "workload": {
            "model": model,
            "data": images(tmp_path, size, classes),
            "calibration_samples": 4,
            "batch_size": 2,
        },
        "database": {
            "path": str(tmp_path / "db"),
            "levels": ["dense", "rtn:w4", "mag:2:4", "rtn:w8a8"],
        },
        "budgets": {"flops": 0.8, "bits": 0.6},
        "fitness": "kl",
        "search": {"algorithms": ["random"], "evaluations": 20},
    }
    job = parse_model_job(content, tmp_path / "job.yaml")
    assert job.store is not None
    with prepare(job) as problem:
        layers = problem.database.layers.values()
        used = sum(
            p.numel()
            for n, p in problem.workload.model.named_parameters()
            if p.dim() > 1 and "aux" not in n
        )
        assert sum(record.size for record in layers) / used >= share
        (result,) = run_search(problem, RunStore(job.store))
        assert result.evaluations == 20
        assert np.isfinite(result.pick.fitness)
        made = export(
            result, problem, tmp_path / "out", formats=("safetensors", "compressed", "onnx")
        )
    assert set(made.content["exports"]) == {"model.safetensors", "model.packed", "model.onnx"}
    assert made.content["costs"]["flops"] <= 0.8
