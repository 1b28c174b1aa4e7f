"""Data: what test_workloads.py does not reach through a whole workload."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from apportion.compressors.errors import DataError
from apportion.evaluators.data import images
from apportion.evaluators.data.config import DataConfig, DigitsData
from apportion.evaluators.data.dataset import Splits, draw
from apportion.evaluators.data.load import load_splits
from apportion.evaluators.tasks.image_classification import Labelled
from apportion.evaluators.workloads.config import WorkloadConfig
from apportion.evaluators.workloads.workload import Workload, load_workload


def archive(path: Path, compress: bool = False, **arrays: Any) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    content = {"images": images, "labels": np.arange(12) % 10, **arrays}
    (np.savez_compressed if compress else np.savez)(path, **content)
    return path


def folder(path: Path, classes: list[str], count: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(
                path / name / f"{i}.png"
            )
    return path


def splits(**data: Any) -> Splits:
    config = TypeAdapter(DataConfig).validate_python(data)
    assert not isinstance(config, DigitsData)
    return load_splits(config)


def workload(**data: Any) -> Workload:
    return load_workload(WorkloadConfig.model_validate({"model": "cifar_resnet20", "data": data}))


def folders(calibration: Path, test: Path, **more: Any) -> dict[str, Any]:
    return {
        "kind": "imagefolder",
        "calibration": calibration,
        "test": test,
        "resize": 36,
        "size": 32,
        **more,
    }


def test_gray_images(tmp_path: Path) -> None:
    images = np.full((12, 8, 8), 51, np.uint8)
    path = archive(tmp_path / "gray.npz", images=images)
    found = splits(
        kind="npz", calibration=path, test=path, mean=[0.1], std=[0.5]
    ).calibration.subset([0, 5])
    assert found.batch[0].shape == (2, 1, 8, 8)
    assert found.batch[0].dtype == torch.float32
    assert found.batch[1].dtype == torch.int64
    torch.testing.assert_close(found.batch[0], torch.full((2, 1, 8, 8), (51 / 255 - 0.1) / 0.5))


def test_every_altered_byte_gives_a_clear_error_or_the_same_data(tmp_path: Path) -> None:
    """Damaged archives make numpy, zipfile, zlib and tokenize raise errors of their own."""
    path = archive(tmp_path / "good.npz", compress=True)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    expected = splits(kind="npz", calibration=path, test=path).calibration.subset(range(12))
    refused = 0
    for trial in range(120):
        broken = bytearray(whole)
        broken[rng.integers(200 if trial % 2 else len(whole))] ^= int(rng.integers(1, 256))
        (tmp_path / "broken.npz").write_bytes(broken)
        try:
            found = splits(
                kind="npz", calibration=tmp_path / "broken.npz", test=path
            ).calibration.subset(range(12))
        except DataError:
            refused += 1
        else:
            assert torch.equal(found.batch[0], expected.batch[0])
            assert torch.equal(found.batch[1], expected.batch[1])
    assert refused > 60


def test_a_numpy_array_in_place_of_an_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(DataError, match="not readable as a .npz archive"):
        splits(kind="npz", calibration=tmp_path / "a.npz", test=tmp_path / "a.npz")


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "npz", "calibration": "a", "test": "b", "std": [0.2, 0.0, 0.2]},
        {"kind": "npz", "calibration": "a", "test": "b", "std": [0.2, float("nan"), 0.2]},
        {"kind": "npz", "calibration": "a", "test": "b", "mean": [0.2, float("inf"), 0.2]},
        {"kind": "imagefolder", "calibration": "a", "test": "b", "std": [0.2, -1.0, 0.2]},
        {"kind": "cifar10", "root": "a", "mean": [0.5, 0.5]},
        {"kind": "digits", "size": 8},
        {"kind": "npy", "calibration": "a", "test": "b"},
    ],
)
def test_configurations_that_cannot_be(data: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        splits(**data)


@pytest.mark.parametrize("part", ["test", "train"])
def test_every_split_must_fit_the_model(tmp_path: Path, part: str) -> None:
    good = archive(tmp_path / "good.npz")
    data = {"kind": "npz", "calibration": good, "test": good}
    high = archive(tmp_path / "high.npz", labels=np.arange(12))
    with pytest.raises(DataError, match=rf"{part} labels must lie in 0..9 .* highest is 11"):
        workload(**{**data, part: high})
    tiny = archive(tmp_path / "tiny.npz", images=np.zeros((12, 0, 32, 3), np.uint8))
    with pytest.raises(DataError, match=rf"{part} inputs of shape \[3, 0, 32\] do not run through"):
        workload(**{**data, part: tiny})


def test_negative_labels(tmp_path: Path) -> None:
    bad = archive(tmp_path / "bad.npz", labels=np.full(12, -1))
    with pytest.raises(DataError, match="calibration labels must lie in 0..9 .* the lowest -1"):
        workload(kind="npz", calibration=bad, test=bad)


def test_folders_of_other_classes_would_shift_the_labels(tmp_path: Path) -> None:
    calibration, test = (
        folder(tmp_path / "a", ["cat", "dog"]),
        folder(tmp_path / "b", ["ant", "cat", "dog"]),
    )
    with pytest.raises(
        DataError,
        match=r"/b: its class folders are not those of .*/a \(only here: ant; only there: none\)",
    ):
        workload(**folders(calibration, test))
    with pytest.raises(DataError, match="only here: ant"):
        workload(**folders(calibration, calibration, train=test))


def test_the_test_folder_is_decoded_only_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "a", ["cat", "dog"])
    read: list[str] = []
    whole = images.read_image

    def reading(file: str) -> Any:
        read.append(file)
        return whole(file)

    monkeypatch.setattr(images, "read_image", reading)
    found = splits(**folders(path, path)).test
    batches = found.batches(4)
    assert read == []
    assert next(batches)[0].shape == (4, 3, 32, 32)
    assert len(read) == 4


def test_decoding_calibration_images_shows_progress(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", ["cat", "dog"])
    calls: list[tuple[int, int]] = []
    found = splits(**folders(path, path))
    draw(
        found.calibration,
        4,
        np.random.default_rng(0),
        lambda _what, done, total: calls.append((done, total)),
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_draws_are_nested_whatever_holds_the_images(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", ["cat", "dog"])
    found = splits(**folders(path, path)).calibration
    five, two = draw(found, 5, np.random.default_rng(3)), draw(found, 2, np.random.default_rng(3))
    assert torch.equal(five.batch[0][:2], two.batch[0])
    whole = found.subset(range(len(found)))
    assert torch.equal(draw(whole, 5, np.random.default_rng(3)).batch[0], five.batch[0])
    assert isinstance(found, Labelled)
    assert isinstance(whole, Labelled)
    assert found.label_range() == whole.label_range() == (0, 1)
