"""Small models for images and tables, and data that they are good at: what is wanted is what the
dense model itself gives, but for a share of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apportion.evaluators.data.dataset import Splits, TensorDataset
from apportion.evaluators.tasks.vision.dense_detection import DenseDetection
from apportion.evaluators.tasks.vision.detections import Found
from apportion.evaluators.tasks.vision.object_detection import Boxes

CLASSES, SIDE, MOST = 4, 16, 6


class UNet(nn.Module):
    """Logits [n, CLASSES, 16, 16] with two levels, a skip between them, and a transposed
    convolution up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.bottom = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.mix = nn.Sequential(nn.Conv2d(16, 8, 3, 1, 1), nn.ReLU())
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        down = self.down(x)
        return self.head(self.mix(torch.cat([down, self.up(self.bottom(down))], 1)))


class Lists(nn.Module):
    """A detector as torchvision's are: a dict for each image, of as many boxes as clear the
    threshold. Each cell of a 4 x 4 grid may hold one box."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU())
        self.head = nn.Conv2d(16, 5 + CLASSES, 1)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return decoded(self.head(self.body(x)).flatten(2).transpose(1, 2).sigmoid())


class Anchors(nn.Module):
    """The same with raw outputs [n, 16, 5 + CLASSES]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU())
        self.head = nn.Conv2d(16, 5 + CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).flatten(2).transpose(1, 2)


class AnchorDetection(DenseDetection):
    """For `Anchors`: logits."""

    probabilities = False

    def detections(self, outputs: Tensor, batch: Boxes) -> Found:  # noqa: ARG002
        return decoded(outputs.sigmoid())


class Two(nn.Module):
    """Three numbers from an image's features and a table's row, by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(12, 16), nn.Linear(6, 16)
        self.out = nn.Linear(32, 3)

    def forward(self, seen: Tensor, told: Tensor) -> Tensor:
        return self.out(F.relu(torch.cat([self.left(seen), self.right(told)], 1)))


def decoded(raw: Tensor) -> list[dict[str, Tensor]]:
    """Of values [n, 16, 5 + CLASSES] in 0..1."""
    cells = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="xy"), -1)
    corner = 4.0 * cells.reshape(16, 2).to(raw.device)
    found = []
    for each in raw:
        scores, labels = (each[:, 4:5] * each[:, 5:]).max(1)
        boxes = torch.cat([corner + 2 * each[:, :2], corner + 2 + 2 * each[:, 2:4]], 1)
        kept = scores > 0.2
        found.append({"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]})
    return found


def mlp() -> nn.Module:
    """Three numbers from twelve."""
    return _fixed(
        lambda: nn.Sequential(
            nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)
        )
    )


class Classifier(nn.Module):
    """Four classes of images with names."""

    classes = ("cat", "dog", "bird", "fish")

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(16 * (SIDE // 2) ** 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def classifier() -> nn.Module:
    return _fixed(Classifier)


def unet() -> nn.Module:
    return _fixed(UNet)


def lists() -> nn.Module:
    return _fixed(Lists)


def anchors() -> nn.Module:
    return _fixed(Anchors)


def retina() -> nn.Module:
    """torchvision's RetinaNet in small, which finds much with random weights."""
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    def made() -> nn.Module:
        body: Any = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        body.out_channels = 8
        anchors = AnchorGenerator(((6,),), ((0.5, 1.0, 2.0),))
        sizes = {"min_size": SIDE, "max_size": SIDE, "detections_per_img": MOST}
        return RetinaNet(body, CLASSES, anchor_generator=anchors, score_thresh=0.01, **sizes)

    model = _fixed(made)
    with torch.no_grad():
        for last in ("classification_head.cls_logits", "regression_head.bbox_reg"):
            model.get_submodule(f"head.{last}").weight.mul_(0.1)  # type: ignore[operator]
    return model


def two() -> nn.Module:
    return _fixed(Two)


def _fixed(make: Callable[[], nn.Module]) -> nn.Module:
    """The same weights every time, wide enough for outputs that differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                bound = 3 / parameter[0].numel() ** 0.5
                parameter.uniform_(-bound, bound, generator=generator)
    return model.eval()


def masks(count: int, seed: int) -> TensorDataset:
    images, generator = _images(count, seed)
    with torch.no_grad():
        right = unet()(images).argmax(1)
    noise = torch.rand(right.shape, generator=generator)
    wanted = torch.where(noise < 0.1, (right + 1) % CLASSES, right)
    return TensorDataset((images, torch.where(noise > 0.9, 255, wanted)))


def boxes(count: int, seed: int, model: Any = lists) -> TensorDataset:
    images, _ = _images(count, seed)
    with torch.no_grad():
        found = model()(images)
    wanted = torch.full((count, MOST, 5), -1.0)
    for row, one in zip(wanted, found, strict=True):
        best = one["scores"].argsort(descending=True)[:MOST]
        row[: len(best), 0] = one["labels"][best].float()
        row[: len(best), 1:] = one["boxes"][best]
    wanted[::6, 0, 0] = (wanted[::6, 0, 0] + 1) % CLASSES
    return TensorDataset((images, wanted))


def numbers(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 12, generator=generator)
    with torch.no_grad():
        right = mlp()(inputs)
    return TensorDataset((inputs, right + 0.1 * torch.randn(right.shape, generator=generator)))


def labels(count: int, seed: int) -> TensorDataset:
    inputs, generator = torch.randn(1), torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 12, generator=generator)
    with torch.no_grad():
        right = mlp()(inputs) > 0
    noise = torch.rand(right.shape, generator=generator) < 0.1
    return TensorDataset((inputs, (right ^ noise).float()))


def pairs(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    given = {
        "seen": torch.randn(count, 12, generator=generator),
        "told": torch.randn(count, 6, generator=generator),
    }
    with torch.no_grad():
        right = two()(**given)
    return TensorDataset(given | {"labels": right + 0.1})


def _images(count: int, seed: int) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, SIDE, SIDE, generator=generator), generator


def mask_splits() -> Splits:
    return Splits(masks(64, 1), masks(32, 2))


def box_splits() -> Splits:
    return Splits(boxes(32, 1), boxes(32, 2))


def retina_splits() -> Splits:
    return Splits(boxes(16, 1, retina), boxes(16, 2, retina))


def number_splits() -> Splits:
    return Splits(numbers(64, 1), numbers(64, 2))


def label_splits() -> Splits:
    return Splits(labels(64, 1), labels(64, 2))


def pair_splits() -> Splits:
    return Splits(pairs(64, 1), pairs(64, 2))


def job(folder: Any, model: str, task: str, data: str) -> dict[str, Any]:
    """A small job on a model, task and data of this file (or a registered task)."""
    return {
        "workload": {
            "model": f"tests.vision.nets:{model}",
            "task": {"kind": task},
            "data": {"kind": "python", "function": f"tests.vision.nets:{data}"},
            "batch_size": 16,
        },
        "database": {"path": str(folder / "database"), "levels": ["dense", "unstr-0.50", "w4"]},
        "budgets": {"bits": 0.6},
        "search": {"algorithms": ["random"], "evaluations": 6},
    }
