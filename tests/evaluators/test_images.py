"""Image folders as users have them: what is read, what is skipped, what is said, and when."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from apportion.compressors.errors import DataError
from apportion.evaluators.data.config import ImageFolderData
from apportion.evaluators.data.images import read_image
from apportion.evaluators.data.load import load_splits
from apportion.evaluators.data.splits import TensorSplit
from apportion.evaluators.models import build as models
from apportion.evaluators.models.build import class_names
from apportion.evaluators.models.huggingface import Logits
from apportion.evaluators.tasks.image_classification import ImageClassification
from apportion.evaluators.workloads.config import WorkloadConfig
from apportion.evaluators.workloads.workload import Workload, load_workload
from apportion.search.jobs.job_file import parse_model_job
from apportion.search.runs.building import build


def picture(value: int = 100, side: int = 40) -> Image.Image:
    pixels = np.random.default_rng(value).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def folder(path: Path, classes: list[str], count: int = 3, suffix: str = ".png") -> Path:
    for number, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i in range(count):
            picture(10 * number + i).save(path / name / f"{i}{suffix}")
    return path


class Net(nn.Module):
    """Ten classes, which it may have names for."""

    def __init__(self, classes: list[str] | None = None) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    def loaded(path: Path, names: list[str] | None = None, **more: Any) -> Workload:
        monkeypatch.setitem(models.MODELS, "mine", lambda: Net(names))
        data = {"kind": "imagefolder", "calibration": path, "test": path, "resize": 32, "size": 32}
        return load_workload(WorkloadConfig.model_validate({"model": "mine", "data": data | more}))

    return loaded


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 40_000, 65_535]], dtype=np.uint16)
    path = tmp_path / f"deep{suffix}"
    if suffix == ".pgm":
        path.write_bytes(b"P5 4 1 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    read, _ = read_image(str(path))
    assert np.asarray(read)[0].tolist() == [[v] * 3 for v in (0, 1, 156, 255)]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_depths_whose_white_is_unknown_are_refused(tmp_path: Path, kind: Any) -> None:
    Image.fromarray(np.full((4, 4), 70_000, dtype=kind)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=r"deep.tif: an image cannot be read \(.*whose white"):
        read_image(str(tmp_path / "deep.tif"))


def test_what_is_hidden_is_no_class_and_no_image(
    tmp_path: Path, load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    plain = folder(tmp_path / "plain", ["cat", "dog"])
    cluttered = tmp_path / "cluttered"
    shutil.copytree(plain, cluttered)
    expected = load(plain)
    for hidden in (".ipynb_checkpoints", "__MACOSX"):
        shutil.copytree(plain / "cat", cluttered / hidden)
    shutil.copytree(plain / "cat", cluttered / "dog" / ".ipynb_checkpoints")
    for name in ("._0.png", ".DS_Store"):
        (cluttered / "cat" / name).write_bytes(b"\0\5\26\7")
    (cluttered / "cat" / "notes.txt").write_text("hello")
    with caplog.at_level(logging.WARNING):
        found = load(cluttered)
    assert found.calibration.labels.tolist() == expected.calibration.labels.tolist()
    assert torch.equal(found.calibration.inputs, expected.calibration.inputs)
    assert "cluttered: skipped 6 files and folders: 5 hidden, 1 no images (.txt)" in caplog.text


def test_a_class_without_images_keeps_its_number(
    tmp_path: Path, load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder(tmp_path / "a", ["ant", "cat", "dog"])
    shutil.rmtree(path / "cat")
    (path / "cat").mkdir()
    with caplog.at_level(logging.WARNING):
        assert set(load(path).calibration.labels.tolist()) == {0, 2}
    assert "1 classes without images: cat" in caplog.text


def test_no_image_at_all(tmp_path: Path, load: Any) -> None:
    (tmp_path / "a" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="no image found"):
        load(tmp_path / "a")


NAMES = ["airplane", "car", "bird", "house cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.mark.parametrize(
    ("classes", "names", "labels"),
    [
        (["Dog", "house_cat", "bird"], NAMES, {2, 3, 5}),  # the model's names
        (["dog", "tabby"], ["tench, Tinca", "tabby, tabby cat", "dog"], {1, 2}),  # synonyms
        (["3", "7", "9"], None, {3, 7, 9}),  # its numbers
        (["03", "07"], NAMES, {3, 7}),
        (["cat", "dog"], None, {0, 1}),  # nothing known: torchvision's order
        (["cat", "crane"], ["crane", "cat", "crane"], {0, 1}),  # a name that two classes have
        ([str(i + 1) for i in range(10)], None, set(range(10))),  # all of them, counted from 1
    ],
)
def test_labels_are_the_models_classes(
    tmp_path: Path, load: Any, classes: list[str], names: list[str] | None, labels: set[int]
) -> None:
    workload = load(folder(tmp_path / "a", classes), names)
    assert set(workload.calibration.labels.tolist()) == labels
    assert workload.test.label_range() == (min(labels), max(labels))


def test_folders_whose_classes_are_unknown_are_said(
    tmp_path: Path, load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load(folder(tmp_path / "a", ["n01440764", "n01443537"]))
    assert "2 classes for a model of 10 are taken for its first ones" in caplog.text


def test_where_models_have_their_names() -> None:
    assert class_names("torchvision:resnet18", nn.Identity())[:2] == ["tench", "goldfish"]  # type: ignore[index]
    classifier = nn.Identity()
    classifier.config = type("Config", (), {"id2label": {1: "b", 0: "a"}})()
    assert class_names("huggingface:x", Logits(classifier)) == ["a", "b"]
    assert class_names("huggingface:x", classifier) == ["a", "b"]
    assert class_names("mine", Net(NAMES)) == NAMES
    assert class_names("mine", Net()) is None


def test_labels_that_are_not_the_models_stop_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digits network with its labels shifted by one: right nowhere."""
    from apportion.evaluators.data.digits import digits_splits, load_trained

    model = models.build_model("digits_resnet")
    load_trained(model)
    monkeypatch.setitem(models.MODELS, "mine", lambda: model)
    split = digits_splits().test
    inputs, labels = next(split.batches(400))
    pixels = ((inputs + 1) * 127.5).round().to(torch.uint8).squeeze(1).numpy()
    content = {
        "workload": {
            "model": "mine",
            "data": {
                "kind": "npz",
                **dict.fromkeys(("calibration", "test"), str(tmp_path / "shifted.npz")),
                "mean": [0.5],
                "std": [0.5],
            },
        },
        "database": {"path": str(tmp_path / "db"), "levels": ["dense"]},
        "budgets": {"flops": 0.6},
    }
    np.savez(tmp_path / "shifted.npz", images=pixels, labels=((labels + 1) % 10).numpy())
    with pytest.raises(DataError, match=r"'mine' is right on \d+ of 400 test images, where chance"):
        build(parse_model_job(content, tmp_path / "job.yaml"))
    assert not (tmp_path / "db").exists()
    check = ImageClassification().check_dense
    check(model, TensorSplit(inputs, labels), "mine")
    check(model, TensorSplit(inputs[:50], (labels[:50] + 1) % 10), "mine")
    check(model, TensorSplit(inputs, torch.zeros_like(labels)), "unlabelled")


def broken(path: Path, way: str) -> None:
    whole = path.read_bytes()
    match way:
        case "truncated":
            path.write_bytes(whole[: len(whole) * 2 // 3])
        case "no image":
            path.write_bytes(b"not an image")
        case "empty":
            path.write_bytes(b"")
        case "a folder":
            path.unlink()
            path.mkdir()
            path.rmdir()
            path.symlink_to("nowhere")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("way", ["truncated", "no image", "empty", "a folder"])
@pytest.mark.parametrize("part", ["test", "train"])
def test_a_broken_file_is_named_before_anything_is_built(
    tmp_path: Path, load: Any, suffix: str, way: str, part: str
) -> None:
    path = folder(tmp_path / "a", ["cat", "dog"], suffix=suffix)
    other = folder(tmp_path / "b", ["cat", "dog"], suffix=suffix)
    broken(other / "dog" / f"1{suffix}", way)
    with pytest.raises(DataError, match=rf"/b/dog/1{suffix}: an image cannot be read") as caught:
        load(path, **{part: other})
    assert "\n" not in str(caught.value)


def test_a_decompression_bomb_is_one_line(
    tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "a", ["cat", "dog"])
    picture(side=80).save(path / "dog" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(DataError, match=r"dog/bomb.png: .*decompression bomb") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_whole_image_with_more_behind_it_is_read(tmp_path: Path, load: Any) -> None:
    path = folder(tmp_path / "a", ["cat", "dog"], suffix=".jpg")
    file = path / "dog" / "1.jpg"
    file.write_bytes(file.read_bytes() + bytes(1000))  # as cameras do
    assert len(load(path).calibration) == 6


def test_palettes_with_transparency_are_read_without_noise(tmp_path: Path) -> None:
    image = picture().quantize(16)
    image.info["transparency"] = bytes(range(16))
    image.save(tmp_path / "p.png", transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read, _ = read_image(str(tmp_path / "p.png"))
    assert np.array_equal(np.asarray(read), np.asarray(picture().quantize(16).convert("RGB")))


def test_images_to_be_turned_are_read_as_stored_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder(tmp_path / "a", ["cat"], suffix=".jpg")
    exif = Image.Exif()
    exif[274] = 6
    for name in ("1", "2"):
        picture(side=50).crop((0, 0, 50, 40)).save(path / "cat" / f"{name}.jpg", exif=exif)
    read, turned = read_image(str(path / "cat" / "1.jpg"))
    assert (read.size, turned) == ((50, 40), True)
    config = ImageFolderData(kind="imagefolder", calibration=path, test=path, resize=32, size=32)
    with caplog.at_level(logging.WARNING):
        load_splits(config).calibration.subset([0, 1, 2])
    assert caplog.text.count("is to be turned when shown") == 1
    assert "cat/1.jpg" in caplog.text


def test_images_are_those_that_torchvision_reads(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    path = folder(tmp_path / "a", ["b", "a", "C"], suffix=".jpg")
    (path / "b" / "deeper").mkdir()
    picture(7).save(path / "b" / "deeper" / "0.png")
    theirs = ImageFolder(str(path))
    config = ImageFolderData(kind="imagefolder", calibration=path, test=path, resize=32, size=32)
    ours: Any = load_splits(config).calibration
    assert [file for file, _ in ours.dataset.files] == [file for file, _ in theirs.samples]
    assert ours.dataset.targets == theirs.targets
    for (file, _), (image, _) in zip(ours.dataset.files, theirs, strict=True):
        assert np.array_equal(np.asarray(read_image(file)[0]), np.asarray(image))
