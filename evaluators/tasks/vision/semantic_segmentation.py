"""Semantic segmentation: one class per pixel."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from apportion.compressors.errors import DataError, ModelError
from apportion.evaluators.data import forms
from apportion.evaluators.data.dataset import Dataset, in_memory
from apportion.evaluators.tasks import divergences
from apportion.evaluators.tasks.distribution import Distribution
from apportion.evaluators.tasks.image_classification import Labelled
from apportion.evaluators.tasks.outputs import field
from apportion.evaluators.tasks.task import Metric, Outputs, Task

IGNORED = 255
"""The mask's value where no class is asked for."""

Masks = tuple[Tensor, Tensor]
"""Images float32 [n, C, H, W], normalised, and classes int64 [n, H, W], 255 where none counts."""


@runtime_checkable
class Placed(Protocol):
    """Data that know which file a class stands in."""

    def place_of(self, label: int) -> str:
        """A file that has it."""


class SemanticSegmentation(Task):
    """One class per pixel. A batch is (images, masks).

    The outputs are logits [n, classes, h, w]: a tensor, `out` of torchvision's models, or `logits`
    of transformers'; smaller ones than the mask are interpolated to its size. Means over the pixels
    of an image that count. The metric is the mean intersection over union of the classes over all
    pixels of all images, of those classes that occur or are found (torchmetrics' multiclass Jaccard
    index, macro)."""

    metric = Metric("mean IoU", "%", higher_is_better=True, tolerance=0.1, digits=".2f")
    kind = "semantic-segmentation"
    form = forms.PIXELS
    auto = "AutoModelForSemanticSegmentation"

    def inputs(self, batch: Masks) -> Tensor:
        return batch[0]

    def loss(self, outputs: Outputs, batch: Masks) -> Tensor:
        """Cross-entropy in nats."""
        made = _logits(outputs, batch).double()
        each = F.cross_entropy(made, _classes(made, batch), ignore_index=IGNORED, reduction="none")
        return _mean(each, batch)

    def divergence(self, outputs: Outputs, dense: Outputs, batch: Masks) -> Tensor:
        """KL(dense || outputs) in nats."""
        return self._softened(outputs, dense, batch, 1.0)

    def reference(self, outputs: Outputs, batch: Masks) -> Tensor:  # noqa: ARG002
        """The logits as the model gives them, without auxiliary ones."""
        return _raw(outputs)

    def distributions(self, outputs: Outputs, batch: Masks) -> list[Distribution]:
        """Of every pixel of the mask."""
        made = _logits(outputs, batch)
        counts = batch[1] != IGNORED
        share = counts / counts.flatten(1).sum(1).clamp_min(1)[:, None, None]
        return [Distribution(made.movedim(1, -1), share)]

    def error(self, outputs: Outputs, batch: Masks) -> Tensor:
        """1 - the mean intersection over union of the image's own classes; 0 where no pixel
        counts."""
        both, found, there = self._counts(outputs, batch)
        union = found + there - both
        classes = (union > 0).sum(1)
        return torch.where(
            classes > 0, 1 - (both / union.clamp_min(1)).sum(1) / classes.clamp_min(1), 0.0
        )

    def rows(self, outputs: Outputs, batch: Masks) -> Tensor:
        """Pixels of each class that are right, that are found, and that are there: [n, 3
        classes]."""
        return torch.cat(self._counts(outputs, batch), 1)

    def measure(self, rows: Tensor) -> float:
        both, found, there = rows.sum(0).chunk(3)
        union = found + there - both
        if not bool((union > 0).any()):
            return float("nan")
        return 100.0 * float((both / union)[union > 0].mean())

    def distance(self, outputs: Outputs, dense: Outputs, batch: Masks) -> Tensor:  # noqa: ARG002
        return F.mse_loss(_raw(outputs), _raw(dense))

    def distill(self, outputs: Outputs, dense: Outputs, batch: Masks, temperature: float) -> Tensor:
        return self._softened(outputs, dense, batch, temperature).mean() * temperature**2

    def supervise(self, outputs: Outputs, batch: Masks, smoothing: float) -> Tensor:
        made = _logits(outputs, batch)
        each = F.cross_entropy(
            made,
            _classes(made, batch),
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=smoothing,
        )
        return _mean(each, batch).mean()

    def check(
        self, outputs: Outputs, batch: Masks, dataset: Dataset, what: str, model: str
    ) -> None:
        """Logits for the pixels of a mask, whose classes are among them."""
        made = _raw(outputs)
        if made.dim() != 4:
            raise ModelError(
                f"model {model!r} must give logits [N, classes, H, W] for semantic-segmentation, "
                f"gave {list(made.shape)}"
            )
        if batch[1].dim() != 3 or batch[1].is_floating_point():
            raise DataError(
                "workload.data",
                f"{what} masks must be integers [N, H, W], got {batch[1].dtype} "
                f"{list(batch[1].shape)}",
            )
        if isinstance(dataset, Labelled):
            lowest, highest = dataset.label_range()
            _check_range(lowest, highest, made.shape[1], what, dataset)
        else:
            _classes(made, in_memory(dataset, batch), what, dataset)

    def _softened(
        self, outputs: Outputs, dense: Outputs, batch: Masks, temperature: float
    ) -> Tensor:
        made, target = _logits(outputs, batch), _logits(dense, batch)
        return _mean(divergences.categorical(made / temperature, target / temperature, 1), batch)

    def _counts(self, outputs: Outputs, batch: Masks) -> list[Tensor]:
        """float64 [n, classes] each: right, found, there."""
        made = _logits(outputs, batch)
        count = made.shape[1]
        there, found = _classes(made, batch).flatten(1), made.argmax(1).flatten(1)
        counts = there != IGNORED

        def tally(classes: Tensor, which: Tensor) -> Tensor:
            table = torch.zeros(len(classes), count, dtype=torch.float64, device=made.device)
            kept = torch.where(which, classes, 0)
            return table.scatter_add_(1, kept, which.double())

        right = counts & (there == found)
        return [tally(there, right), tally(found, counts), tally(there, counts)]


def _raw(outputs: Outputs) -> Tensor:
    """The logits, as large as the model gives them."""
    if isinstance(outputs, dict) and "out" in outputs:
        made: Tensor = outputs["out"]
        return made
    return field(outputs, "logits", 0)


def _logits(outputs: Outputs, batch: Masks) -> Tensor:
    """One per pixel of the mask."""
    made, size = _raw(outputs), batch[1].shape[-2:]
    if made.shape[-2:] == size:
        return made
    return F.interpolate(made, size=size, mode="bilinear", align_corners=False)


def _classes(
    made: Tensor, batch: Masks, what: str = "a batch's", dataset: Dataset | None = None
) -> Tensor:
    """The masks, all of whose values are classes of `made` or 255. Raises DataError, for a whole
    `dataset` with the file, where it knows that."""
    mask = batch[1]
    asked = mask[mask != IGNORED]
    if asked.numel():
        _check_range(int(asked.min()), int(asked.max()), made.shape[1], what, dataset)
    return mask


def _check_range(
    lowest: int, highest: int, classes: int, what: str, dataset: Dataset | None
) -> None:
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        place = f" ({wrong} is in {dataset.place_of(wrong)})" if isinstance(dataset, Placed) else ""
        raise DataError(
            "workload.data",
            f"{what} masks must hold classes 0..{classes - 1}, or {IGNORED} where none counts; the "
            f"lowest is {lowest}, the highest {highest}{place}",
        )


def _mean(values: Tensor, batch: Masks) -> Tensor:
    """Of values [n, H, W] over the pixels that count; 0 where none does."""
    counts = (batch[1] != IGNORED).flatten(1)
    total: Any = (values.flatten(1) * counts).sum(1)
    return total / counts.sum(1).clamp_min(1)
