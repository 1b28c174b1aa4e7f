"""Images with masks in folders: read as they are, cut alike, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from apportion.compressors.errors import DataError, JobError
from apportion.evaluators.data.load import load_splits
from apportion.evaluators.data.registry import Context
from apportion.evaluators.data.vision.config import MasksData
from apportion.evaluators.data.vision.masks import read_mask
from apportion.evaluators.models import build as models
from apportion.evaluators.workloads.config import WorkloadConfig
from apportion.evaluators.workloads.workload import Workload, load_workload
from apportion.search.jobs.job_file import parse_model_job

CONTEXT = Context("mine", "semantic-segmentation", "pixels")


class Net(nn.Module):
    """Three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


def halves(high: int = 2, low: int = 0) -> np.ndarray:
    """A mask of 12 x 16 whose right half is `high`."""
    mask = np.full((12, 16), low, dtype=np.uint8)
    mask[:, 8:] = high
    return mask


def written(folder: Path) -> Path:
    """Two images, white on the right, with such masks: one grey, one with a palette."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    white = np.repeat(halves(255)[..., None], 3, 2)
    Image.fromarray(white).save(folder / "images" / "a.jpg", quality=95)
    Image.fromarray(white).save(folder / "images" / "b.png")
    Image.fromarray(halves()).save(folder / "masks" / "a.png")
    palette = Image.fromarray(halves(1, 255), "P")
    palette.putpalette([7, 7, 7] * 256)
    palette.save(folder / "masks" / "b.png")
    return folder


def config(folder: Path, **more: Any) -> MasksData:
    given = {"calibration": folder, "test": folder, "resize": 8, "size": 8, **more}
    return MasksData(kind="masks", **given)


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workload:
    monkeypatch.setitem(models.MODELS, "mine", Net)
    content = {"model": "mine", "task": {"kind": "semantic-segmentation"}, "batch_size": 2}
    return load_workload(WorkloadConfig(data=config(folder), **content))


def test_masks_are_cut_as_their_images(tmp_path: Path) -> None:
    splits = load_splits(config(written(tmp_path)), CONTEXT)
    splits.test.check(range(2))
    (batch,) = splits.test.batches(5)
    images, masks = batch
    assert images.shape == (2, 3, 8, 8)
    assert images.dtype == torch.float32
    assert masks.dtype == torch.int64
    assert masks[0].tolist() == [[0] * 4 + [2] * 4] * 8
    assert masks[1].tolist() == [[255] * 4 + [1] * 4] * 8
    assert bool((images[..., 6:] > images[..., :2]).all())
    assert splits.test.label_range() == (0, 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("bits", "values"), [(1, [0, 1]), (2, [0, 1, 2, 3]), (4, [0, 3, 9, 15])])
@pytest.mark.parametrize("palette", [False, True])
def test_masks_of_few_bits_hold_what_stands_in_the_file(
    tmp_path: Path, bits: int, values: list[int], palette: bool
) -> None:
    """Pillow stretches grey of 2 and 4 bits to 0..255."""
    wanted = np.resize(np.array(values, dtype=np.uint8), (4, 8))
    _write_png(tmp_path / "few.png", wanted, bits, palette)
    assert np.array_equal(read_mask(str(tmp_path / "few.png")), wanted)


def _write_png(path: Path, values: np.ndarray, bits: int, palette: bool) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    rows = []
    for row in values:
        single = np.unpackbits(row[:, None], axis=1)[:, 8 - bits :]
        rows.append(b"\0" + np.packbits(single.reshape(-1)).tobytes())
    height, width = values.shape
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 3 * palette, 0, 0, 0))]
    if palette:
        parts.append(chunk(b"PLTE", bytes(range(3 * 2**bits))))
    parts += [chunk(b"IDAT", zlib.compress(b"".join(rows))), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def _mask(values: Any, name: str = "masks/a.png", mode: str | None = None) -> Any:
    def change(folder: Path) -> None:
        image = Image.fromarray(values)
        (image.convert(mode) if mode else image).save(folder / name)

    return change


def _everywhere(folder: Path) -> None:
    for name in ("a", "b"):
        _mask(halves(255), f"masks/{name}.png")(folder)


def _nothing_asked(folder: Path) -> None:
    for name in ("a", "b"):
        _mask(halves(255, 255), f"masks/{name}.png")(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "masks" / "a.png").unlink(), "images/a.jpg has no mask; .*a.png"),
        (lambda folder: (folder / "masks").rename(folder / "m"), "masks: no such folder"),
        (lambda folder: (folder / "images").rename(folder / "m"), "images: no such folder"),
        (
            lambda folder: [path.unlink() for path in (folder / "images").iterdir()],
            "images has no images",
        ),
        (_mask(halves()[:-2]), "masks/a.png: is 16 x 10, its image .*images/a.jpg is 16 x 12"),
        (_mask(halves(), mode="RGB"), r"a.png: a mask must be greyscale.* of colours \(RGB\)"),
        (_mask(halves(), mode="LA"), "a.png: a mask must be greyscale.* image of LA"),
        (_mask(halves().astype(np.uint16)), "a.png: a mask must be greyscale.* of 16 bits"),
        (
            lambda folder: (folder / "masks" / "a.png").write_bytes(b"hello"),
            "a.png: a mask cannot be read",
        ),
        (
            lambda folder: (folder / "images" / "b.png").write_bytes(b"hello"),
            "b.png: an image cannot be read",
        ),
        (_mask(halves()), None),
        (_mask(halves(3)), r"calibration masks must hold classes 0\.\.2, .*3 is in .*masks/a.png"),
        (_mask(halves(), "images/b.jpg"), "b.png and b.jpg would have the same mask"),
        (_everywhere, "masks hold 0 and 255 alone"),
        (_nothing_asked, "masks hold 255 alone"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, said: str | None
) -> None:
    change(written(tmp_path))
    if said is None:
        assert len(loaded(tmp_path, monkeypatch).test) == 2
        return
    with pytest.raises(DataError, match=said) as caught:
        loaded(tmp_path, monkeypatch)
    assert "\n" not in str(caught.value)


def test_a_class_too_many_in_files_that_nothing_was_drawn_from_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = written(tmp_path / "good"), written(tmp_path / "bad")
    _mask(halves(9), "masks/b.png")(bad)
    monkeypatch.setitem(models.MODELS, "mine", Net)
    content: Any = {"model": "mine", "task": {"kind": "semantic-segmentation"}}
    data = config(good, test=bad)
    with pytest.raises(DataError, match=r"test masks must .*highest 9 \(9 is in .*bad/masks/b.png"):
        load_workload(WorkloadConfig(data=data, **content))


def test_masks_without_an_image_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _mask(halves(), "masks/z.png")(written(tmp_path))
    assert len(load_splits(config(tmp_path), CONTEXT).test) == 2
    assert "1 masks have no image: z" in caplog.text


def test_only_segmentation_takes_masks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="masks are not what task image-classification takes"):
        load_splits(config(written(tmp_path)), Context(task="image-classification"))


def test_a_cut_beyond_the_image_is_refused(tmp_path: Path) -> None:
    data = {"kind": "masks", "calibration": "a", "test": "b", "size": 300}
    with pytest.raises(JobError, match="size 300 is above resize 256"):
        parse_model_job({"workload": {"model": "m", "data": data}}, tmp_path / "job.yaml")
