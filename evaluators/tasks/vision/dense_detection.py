"""Detectors that predict at fixed places, as the YOLO family does."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from apportion.compressors.errors import ModelError
from apportion.evaluators.data.dataset import Dataset
from apportion.evaluators.tasks import divergences
from apportion.evaluators.tasks.task import Outputs
from apportion.evaluators.tasks.vision.detections import Found
from apportion.evaluators.tasks.vision.object_detection import Boxes, ObjectDetection

_BOX = 4


class DenseDetection(ObjectDetection):
    """Object detection by outputs [n, anchors, 4 + 1 + classes]: a box, whether there is an object,
    and of which class, each class on its own.

    A subclass says by `detections` how they are decoded, non-maximum suppression included. The
    divergence needs no decoding: it is the sum over the anchors of KL(dense || outputs) in nats of
    there being an object, and, as far as the dense model sees one there, of its classes and of its
    box (squared difference, half of it: that of two Gaussians of standard deviation `box_scale`).

    Attributes:
        probabilities: whether objects and classes come as probabilities; False for logits.
        box_scale: what difference of the four box outputs weighs half a nat, in their unit.
    """

    kind = ""
    probabilities: ClassVar[bool] = True
    box_scale: ClassVar[float] = 1.0

    @abstractmethod
    def detections(self, outputs: Outputs, batch: Boxes) -> Found: ...

    def divergence(self, outputs: Tensor, dense: Tensor, batch: Boxes) -> Tensor:  # noqa: ARG002
        kl = divergences.binary_of_probabilities if self.probabilities else divergences.binary
        there = dense[..., _BOX].double()
        there = there if self.probabilities else there.sigmoid()
        moved = (outputs[..., :_BOX].double() - dense[..., :_BOX].double()) / self.box_scale
        each = kl(outputs[..., _BOX:], dense[..., _BOX:])
        inside = each[..., 1:].sum(-1) + moved.square().sum(-1) / 2
        return (each[..., 0] + there * inside).sum(1)

    def reference(self, outputs: Tensor, batch: Boxes) -> Tensor:  # noqa: ARG002
        """All of the outputs."""
        return outputs

    def distance(self, outputs: Tensor, dense: Tensor, batch: Boxes) -> Tensor:  # noqa: ARG002
        return F.mse_loss(outputs, dense)

    def check(
        self, outputs: Outputs, batch: Boxes, dataset: Dataset, what: str, model: str
    ) -> None:
        if not isinstance(outputs, Tensor) or outputs.dim() != 3 or outputs.shape[2] <= _BOX + 1:
            raise ModelError(
                f"model {model!r} must give one tensor [N, anchors, 4 + 1 + classes] for task "
                f"{self.identity}"
            )
        super().check(outputs, batch, dataset, what, model)
