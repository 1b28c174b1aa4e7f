"""Whole jobs on numbers and images: build, search, export, and the export's check by the task's
own metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apportion.compressors.errors import ConfigurationError, ModelError
from apportion.db.runs.store import RunStore
from apportion.search.export.exporting import check_formats
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.pipeline import prepare, run_search
from tests.vision import files, nets
from tests.whole_jobs import gone_through

CASES = [
    ("mlp", "multi-label", "label_splits", "macro F1"),
    ("mlp", "regression", "number_splits", "root mean squared error"),
    ("two", "regression", "pair_splits", "root mean squared error"),
    ("unet", "semantic-segmentation", "mask_splits", "mean IoU"),
    ("anchors", "tests.vision.nets:AnchorDetection", "box_splits", "mAP"),
]
LISTS = [
    ("lists", "object-detection", "box_splits", "mAP"),
    ("retina", "object-detection", "retina_splits", "mAP"),
]
"""Detectors that give as many boxes as they find."""


@pytest.mark.parametrize(
    ("model", "task", "data", "metric", "formats"),
    [
        *((*case, ["safetensors", "compressed"]) for case in CASES + LISTS),
        *(pytest.param(*case, ["onnx", "torch"], marks=pytest.mark.slow) for case in CASES),
    ],
)
def test_a_job_goes_through(
    model: str, task: str, data: str, metric: str, formats: list[str], tmp_path: Path
) -> None:
    found = gone_through(nets.job(tmp_path, model, task, data), tmp_path, formats)
    assert found["metric"]["name"] == metric
    assert found["costs"]["bits"] <= 0.6
    assert found[metric]["dense"] > 0


def test_a_job_on_folders_of_masks_goes_through(tmp_path: Path) -> None:
    for part, seed in (("calibration", 1), ("test", 2)):
        files.save_masks(tmp_path / part, seed)
    content = nets.job(tmp_path, "unet", "semantic-segmentation", "mask_splits")
    data = {"kind": "masks", **{part: str(tmp_path / part) for part in ("calibration", "test")}}
    content["workload"]["data"] = {**data, "resize": nets.SIDE, "size": nets.SIDE, **files.GREY}
    found = gone_through(content, tmp_path, ["safetensors"])
    assert found["mean IoU"]["dense"] > 60


def test_a_job_on_a_list_of_images_goes_through(tmp_path: Path) -> None:
    """A subset of the classes, by the model's names for them."""
    content = nets.job(tmp_path, "classifier", "image-classification", "")
    data = {"kind": "imagelist", "image": "file", "label": "class"}
    data |= {
        part: str(files.save_list(tmp_path / f"{part}.csv", seed))
        for part, seed in (("calibration", 1), ("test", 2))
    }
    content["workload"]["data"] = {**data, "resize": nets.SIDE, "size": nets.SIDE, **files.GREY}
    found = gone_through(content, tmp_path, ["safetensors"])
    assert found["accuracy"]["dense"] > 90


@pytest.mark.parametrize(
    ("task", "label", "least"),
    [
        ("regression", ["y0", "y1", "y2"], 0.0),
        ("multi-label", ["on0", "on1", "on2"], 60.0),
        ("image-classification", "best", 90.0),
    ],
)
def test_a_job_on_columns_of_numbers_goes_through(
    task: str, label: Any, least: float, tmp_path: Path
) -> None:
    content = nets.job(tmp_path, "mlp", task, "")
    content["workload"]["data"] = {
        "kind": "csv",
        **{
            part: str(files.save_numbers(tmp_path / f"{part}.csv", seed))
            for part, seed in (("calibration", 1), ("test", 2))
        },
        "features": [f"x{i}" for i in range(12)],
        "label": label,
    }
    found = gone_through(content, tmp_path, ["safetensors"])
    assert found[found["metric"]["name"]]["dense"] >= least


def test_a_run_whose_candidates_are_all_worth_nothing_is_an_error(tmp_path: Path) -> None:
    """The loss is NaN for one sample, which is not among the first that are tried."""
    content = nets.job(tmp_path, "mlp", "tests.robustness.odd:OnceNaN", "number_splits")
    content["fitness"] = "loss"
    with (
        prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem,
        pytest.raises(ConfigurationError, match="run 'random-.*: the fitness 'loss' of all cand"),
    ):
        run_search(problem, RunStore(f"sqlite:///{tmp_path / 'runs.sqlite'}"))


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_a_program_of_a_list_for_each_image_is_refused_at_once(form: str, tmp_path: Path) -> None:
    content = nets.job(tmp_path, *LISTS[0][:3])
    with (
        prepare(parse_model_job(content, tmp_path / "job.yaml")) as problem,
        pytest.raises(ModelError, match=f"format {form}: .*lists' gives 3 tensors for one sample"),
    ):
        check_formats([form], problem)
