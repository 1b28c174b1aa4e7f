"""Images that a csv file names: classes, numbers, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from apportion.compressors.errors import ApportionError, DataError, JobError
from apportion.evaluators.data.config import ImageFolderData
from apportion.evaluators.data.load import load_splits
from apportion.evaluators.data.registry import Context
from apportion.evaluators.data.vision.config import ImageListData
from apportion.evaluators.models import build as models
from apportion.evaluators.workloads.config import WorkloadConfig
from apportion.evaluators.workloads.workload import Workload, load_workload
from apportion.search.jobs.job_file import parse_model_job

NAMES = ["tench", "great white shark, Carcharodon", "goldfish", "cock", "hen"]
TARGETS = Context("mine", "regression", "targets")


class Net(nn.Module):
    """Five outputs, which have names or none."""

    def __init__(self, classes: Sequence[str] | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))


def listed(folder: Path, lines: Sequence[str], header: str = "file,class") -> Path:
    """A csv file beside its images pics/0.png to pics/3.png, of different brightness."""
    (folder / "pics").mkdir(exist_ok=True)
    for number in range(4):
        pixels = np.full((12, 10, 3), 50 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pics" / f"{number}.png")
    (folder / "list.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder / "list.csv"


def config(file: Path, **more: Any) -> ImageListData:
    given = {"image": "file", "label": "class", "resize": 8, "size": 8, **more}
    return ImageListData(kind="imagelist", **{"calibration": file, "test": file, **given})


def loaded(
    monkeypatch: pytest.MonkeyPatch, data: ImageListData, names: Sequence[str] | None = None
) -> Workload:
    monkeypatch.setitem(models.MODELS, "mine", lambda: Net(names))
    return load_workload(WorkloadConfig(model="mine", data=data, batch_size=2))


def test_images_are_prepared_as_those_of_folders(tmp_path: Path) -> None:
    file = listed(tmp_path, ["pics/0.png,0", "pics/1.png,1"])
    for number in (0, 1):
        (tmp_path / "folders" / str(number)).mkdir(parents=True)
        (tmp_path / "pics" / f"{number}.png").rename(
            tmp_path / "folders" / str(number) / f"{number}.png"
        )
    (tmp_path / "list.csv").write_text("file,class\nfolders/0/0.png,0\nfolders/1/1.png,1\n")
    ours = load_splits(config(file)).test.subset([0, 1]).batch
    folder = tmp_path / "folders"
    folders = ImageFolderData(kind="imagefolder", calibration=folder, test=folder, resize=8, size=8)
    theirs = load_splits(folders).test.subset([0, 1]).batch
    assert torch.equal(ours[0], theirs[0])
    assert ours[1].tolist() == theirs[1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("given", "classes", "names", "labels"),
    [
        (["hen", "Tench", "great-white_shark"], None, NAMES, [4, 0, 1]),  # the model's names
        (["4", "0", "2"], None, None, [4, 0, 2]),  # its outputs
        (["10", "9", "1"], ["10", "9", "1", "a", "b"], None, [0, 1, 2]),  # in the order listed
        (["b", "a", "d"], ["d", "c", "b", "a", "e"], None, [2, 3, 0]),
        (["hen", "cock", "hen"], ["hen", "cock"], NAMES, [4, 3, 4]),  # a subset, by name
        (["3", "1", "3"], [3, 1], None, [3, 1, 3]),  # a subset, by output
    ],
)
def test_classes_are_the_models_outputs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    classes: Any,
    names: Any,
    labels: list[int],
) -> None:
    file = listed(tmp_path, [f"pics/{i}.png,{name}" for i, name in enumerate(given)])
    workload = loaded(monkeypatch, config(file, classes=classes), names)
    assert workload.test.subset([0, 1, 2]).batch[1].tolist() == labels


def test_parts_with_different_classes_are_numbered_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by itself would take "1" for the first of the names, or for the second output."""
    file = listed(tmp_path, ["pics/0.png,1", "pics/1.png,2"])
    other = tmp_path / "other.csv"
    other.write_text("file,class\npics/2.png,0\npics/3.png,1\n")
    names = ["1", "2", "3", "4", "5"]
    workload = loaded(monkeypatch, config(file, test=other), names)
    assert workload.test.subset([0, 1]).batch[1].tolist() == [0, 1]
    assert sorted(workload.calibration.batch[1].tolist()) == [1, 2]


def test_first_classes_of_a_model_without_names_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = listed(tmp_path, ["pics/0.png,cat", "pics/1.png,dog"])
    loaded(monkeypatch, config(file, classes=["cat", "dog"]))
    assert "2 classes for a model of 5 are taken for its first ones" in caplog.text


@pytest.mark.parametrize(
    ("lines", "more", "names", "said"),
    [
        (["pics/0.png,hen", "pics/1.png,hne"], {}, NAMES, "list.csv: line 3 has the unk.*'hen'"),
        (["pics/0.png,b"], {"classes": ["a", "c"]}, None, "csv: line 2 has the unknown class 'b'"),
        (["pics/0.png,cat"], {}, None, "line 2 has the class 'cat', and the model has no names"),
        (["pics/0.png,Hen", "pics/1.png,hen"], {}, NAMES, "line 3: 'Hen' and 'hen' are one class"),
        (["pics/0.png,hen"], {"classes": ["hen", "cok"]}, NAMES, "classes: 'cok' is none.*'cock'"),
        (["pics/0.png,7"], {}, None, r"pics/0.png: class '7' is output 7 .* has 0\.\.4"),
        (["pics/9.png,1"], {}, None, "line 2 names 'pics/9.png': .*pics/9.png is no file"),
        (["pics/0.png,"], {}, None, "line 2 has nothing in column 'class'"),
        ([",1"], {}, None, "line 2 has nothing in column 'file'"),
        (["pics/0.png,1,2"], {}, None, "line 2: 3 values for 2 columns"),
        ([], {}, None, "list.csv has no rows"),
        (["pics/0.png,1"], {"label": "kind"}, None, "list.csv: expected .* 'kind' is missing"),
        (["pics/0.png,1"], {"label": ("class", "k")}, None, "'k' is missing"),
        (["list.csv,1"], {}, None, "list.csv: an image cannot be read"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[str],
    more: dict[str, Any],
    names: Any,
    said: str,
) -> None:
    file = listed(tmp_path, lines)
    with pytest.raises(DataError, match=said) as caught:
        loaded(monkeypatch, config(file, **more), names)
    assert "\n" not in str(caught.value)


def test_numbers_are_targets(tmp_path: Path) -> None:
    lines = ["pics/3.png,1,-0.5", "pics/0.png,0,2e3"]
    file = listed(tmp_path, lines, "file,a,b")
    data = load_splits(config(file, label=("b", "a")), TARGETS).test
    data.check(range(2))
    (batch,) = data.batches(4)
    assert batch[1].tolist() == [[-0.5, 1.0], [2000.0, 0.0]]
    assert batch[0].shape == (2, 3, 8, 8)
    assert float(batch[0][0].min()) > float(batch[0][1].max())  # the third is brighter
    assert data.subset([1]).batch[1].tolist() == [[2000.0, 0.0]]
    Path(tmp_path / "pics" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0.png: an image cannot be read"):
        data.check(range(2))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("yes", "line 2, column 'class': a number is needed, not 'yes'"),
        ("nan", "a number is needed, not 'nan'"),
        ('"1,5"', "write 1.5, with a point"),
        ("1e300", "too large for float32"),
    ],
)
def test_targets_that_are_no_numbers_are_refused(tmp_path: Path, value: str, said: str) -> None:
    file = listed(tmp_path, [f"pics/0.png,{value}"])
    with pytest.raises(DataError, match=said):
        load_splits(config(file), TARGETS)


@pytest.mark.parametrize(
    ("more", "context", "said"),
    [
        ({"label": ("class", "class2")}, Context(task="image-classification"), "one column of cl"),
        ({"classes": ["a", "b"]}, TARGETS, "task regression takes the numbers .* leave `classes`"),
        ({}, Context(task="masked-lm", form="masked"), "task masked-lm does not take"),
    ],
)
def test_what_a_task_does_not_take_is_refused(
    tmp_path: Path, more: dict[str, Any], context: Context, said: str
) -> None:
    file = listed(tmp_path, ["pics/0.png,1,2"], "file,class,class2")
    with pytest.raises(ApportionError, match=said):
        load_splits(config(file, **more), context)


def test_sections_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    def job(**more: Any) -> None:
        data = {"kind": "imagelist", "calibration": "a.csv", "test": "b.csv", "image": "file"}
        content = {"workload": {"model": "mine", "data": {**data, "label": "class", **more}}}
        parse_model_job(content, tmp_path / "job.yaml")

    with pytest.raises(JobError, match="class 'a' stands twice in `classes`"):
        job(classes=["a", "b", "a"])
    with pytest.raises(JobError, match="column 'file' is asked for twice"):
        job(label=["x", "file"])
    with pytest.raises(JobError, match=r"data.imagelist.clases: .*did you mean 'classes'"):
        job(clases=["a"])
