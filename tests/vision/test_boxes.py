"""Images with boxes: YOLO's labels and COCO's JSON give the same batches; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apportion.compressors.errors import DataError
from apportion.evaluators.data.load import load_splits
from apportion.evaluators.data.registry import Context
from apportion.evaluators.data.vision.config import BoxesData
from apportion.search.jobs.job_file import resolve_paths

CONTEXT = Context("mine", "object-detection", "boxes")


def written(folder: Path) -> Path:
    """Two images of 40 x 20, red; the first has two boxes, the second none."""
    for name in ("images", "labels"):
        (folder / name).mkdir()
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[..., 0] = 200
    for name in ("a", "b"):
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
    (folder / "labels" / "a.txt").write_text("2 0.5 0.5 0.5 0.5\n0 0.125 0.25 0.25 0.5\n")
    content = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
        "annotations": [
            {"image_id": 7, "category_id": 2, "bbox": [10, 5, 20, 10], "iscrowd": 0},
            {"image_id": 7, "category_id": 0, "bbox": [0, 0, 10, 10]},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 40, 20], "iscrowd": 1},
        ],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder


def config(path: Path, **more: Any) -> BoxesData:
    return BoxesData(kind="boxes", calibration=path, test=path, size=16, **more)


@pytest.mark.parametrize("file", ["", "boxes.json"])
def test_boxes_and_pixels_are_where_the_image_is_in_the_square(tmp_path: Path, file: str) -> None:
    folder = written(tmp_path)
    given = config(folder / file, images=folder / "images", order="bgr", scale=1, pad=114)
    splits = load_splits(given, CONTEXT)
    assert len(splits.test) == 2
    assert splits.train is None
    splits.test.check(range(2))
    (batch,) = splits.test.batches(4)
    images, boxes = batch
    assert images.shape == (2, 3, 16, 16)
    assert images[0, :, 0, 0].tolist() == [0, 0, 200]
    assert bool((images[:, :, 8:] == 114).all())
    assert bool((images[:, 2, :8] == 200).all())
    expected = torch.tensor([[2, 4, 2, 12, 6], [0, 0, 0, 4, 4]], dtype=torch.float32)
    torch.testing.assert_close(boxes[0], expected)
    assert bool((boxes[1, :, 0] == -1).all())


def test_values_are_scaled_and_normalised(tmp_path: Path) -> None:
    given = config(written(tmp_path), mean=(0.5, 0.0, 0.0), std=(0.5, 1.0, 1.0))
    images, _ = load_splits(given, CONTEXT).test.subset([1]).batch
    assert images[0, 0, 0, 0].item() == pytest.approx((200 / 255 - 0.5) / 0.5)


@pytest.mark.parametrize(
    ("line", "said"), [("1 0.5 0.5 20 10", "shares of the image"), ("dog 0 0 1 1", "line 1")]
)
def test_labels_that_are_not_yolos_are_refused(tmp_path: Path, line: str, said: str) -> None:
    (written(tmp_path) / "labels" / "b.txt").write_text(line)
    with pytest.raises(DataError, match=said):
        load_splits(config(tmp_path), CONTEXT)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path)
    with pytest.raises(DataError, match=r"workload\.data\.images"):
        load_splits(config(folder / "boxes.json"), CONTEXT)
    with pytest.raises(DataError, match=r"a\.png: no such image"):
        load_splits(config(folder / "boxes.json", images=folder / "labels"), CONTEXT)
    with pytest.raises(DataError, match="not readable as COCO"):
        load_splits(config(folder / "none.json", images=folder), CONTEXT)
    with pytest.raises(DataError, match="labels: no such folder|images: no such folder"):
        load_splits(config(folder / "images"), CONTEXT)
    with pytest.raises(DataError, match="not what task regression takes"):
        load_splits(config(folder), Context("mine", "regression", "targets"))


def test_the_image_folder_is_relative_to_the_job() -> None:
    content = resolve_paths({"workload": {"data": {"images": "photos"}}}, Path("/jobs"))
    assert content["workload"]["data"]["images"] == "/jobs/photos"
