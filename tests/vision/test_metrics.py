"""Metrics by what is kept of each sample are those of torchmetrics, and divergences are what they
say."""

import pytest
import torch
from torch.nn import functional as F

from apportion.compressors.errors import DataError, ModelError
from apportion.evaluators.data.dataset import TensorDataset
from apportion.evaluators.tasks import divergences
from apportion.evaluators.tasks.multi_label import MultiLabel
from apportion.evaluators.tasks.regression import Regression
from apportion.evaluators.tasks.vision import detections
from apportion.evaluators.tasks.vision.object_detection import ObjectDetection
from apportion.evaluators.tasks.vision.semantic_segmentation import IGNORED, SemanticSegmentation
from tests.vision import nets

torchmetrics = pytest.importorskip("torchmetrics")


def test_mean_iou_is_torchmetrics_jaccard_index_over_all_pixels() -> None:
    task, (images, wanted) = SemanticSegmentation(), nets.masks(9, 3).batch
    logits = torch.randn(9, 7, 16, 16, generator=torch.Generator().manual_seed(0))
    logits[:, 5] = -9  # a class that is neither there nor found
    metric = torchmetrics.JaccardIndex(task="multiclass", num_classes=7, ignore_index=IGNORED)
    expected = float(metric(logits.argmax(1), wanted))
    rows = torch.cat(
        [task.rows(logits[a:b], (images[a:b], wanted[a:b])) for a, b in ((0, 4), (4, 9))]
    )
    assert task.measure(rows) == pytest.approx(100 * expected)


def test_smaller_logits_are_interpolated_and_pixels_without_a_class_left_out() -> None:
    task, (images, wanted) = SemanticSegmentation(), nets.masks(3, 3).batch
    small = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
    batch = images, wanted
    for outputs in ({"out": small, "aux": large * 0}, {"logits": small}, small):
        torch.testing.assert_close(task.loss(outputs, batch), task.loss(large, batch))
    expected = F.cross_entropy(large[:1], wanted[:1], ignore_index=IGNORED)
    assert float(task.loss(large, batch)[0]) == pytest.approx(float(expected), rel=1e-5)
    moved = torch.where((wanted == IGNORED)[:, None], large + torch.randn(3, 4, 16, 16), large)
    assert float(task.divergence(moved, large, batch).max()) == 0
    nothing = images, torch.full_like(wanted, IGNORED)
    assert task.loss(large, nothing).tolist() == task.error(large, nothing).tolist() == [0, 0, 0]


def test_masks_with_a_class_too_many_are_refused() -> None:
    images, wanted = nets.masks(3, 3).batch
    wanted[0, 0, 0] = nets.CLASSES
    data = TensorDataset((images, wanted))
    with pytest.raises(DataError, match=r"classes 0\.\.3, or 255.*the highest 4"):
        SemanticSegmentation().check(nets.unet()(images), data.batch, data, "test", "unet")


def test_macro_f1_is_torchmetrics() -> None:
    task, batch = MultiLabel(), nets.labels(40, 5).batch
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    metric = torchmetrics.classification.MultilabelF1Score(num_labels=3, average="macro")
    expected = float(metric(logits.sigmoid(), batch[1].long()))
    assert task.measure(task.rows(logits, batch)) == pytest.approx(100 * expected)
    logits[:, 1] = batch[1][:, 1] = -1.0  # never there, never found
    batch[1][:, 1] = 0
    metric.reset()
    expected = float(metric(logits.sigmoid(), batch[1].long()))
    assert task.measure(task.rows(logits, batch)) == pytest.approx(100 * expected)


def test_root_mean_squared_error_is_torchmetrics_and_one_target_may_be_flat() -> None:
    task, batch = Regression(), nets.numbers(40, 5).batch
    found = torch.randn(40, 3)
    expected = float(torchmetrics.functional.mean_squared_error(found, batch[1], squared=False))
    assert task.measure(task.rows(found, batch)) == pytest.approx(expected, rel=1e-6)
    flat = batch[0], batch[1][:, 0]
    torch.testing.assert_close(task.loss(found[:, :1], flat), task.loss(found[:, 0], flat))


def test_targets_that_are_too_many_or_no_numbers_are_refused() -> None:
    inputs, targets = nets.numbers(4, 5).batch
    for wrong, said in ((targets[:, :2], "2 targets per sample"), (targets / 0, "NaN or inf")):
        data = TensorDataset((inputs, wrong))
        with pytest.raises(DataError, match=said):
            Regression().check(targets, data.batch, data, "test", "mlp")
    data = TensorDataset((inputs, targets))
    with pytest.raises(DataError, match="0 or 1"):
        MultiLabel().check(targets, data.batch, data, "test", "mlp")


def test_divergences_of_logits_and_of_probabilities_agree() -> None:
    found, dense = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).double()
    p, q = dense.sigmoid(), found.sigmoid()
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(divergences.binary(found, dense), expected)
    torch.testing.assert_close(divergences.binary_of_probabilities(q, p), expected)


def _set(*rows: tuple[float, ...]) -> torch.Tensor:
    boxes = torch.tensor(rows).reshape(-1, 6)
    one = {"labels": boxes[:, 0], "scores": boxes[:, 1], "boxes": boxes[:, 2:]}
    return detections.table([one])


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([(1, 0.8, 0, 0, 10, 10)], 0),
        ([(1, 0.5, 0, 0, 10, 10)], 0.3),  # the score
        ([(1, 0.8, 0, 0, 10, 5)], 0.8),  # half of the box: 2 x 0.8 x (1 - 1/2)
        ([(2, 0.8, 0, 0, 10, 10)], 1.6),  # another class
        ([], 0.8),  # gone
        ([(1, 0.8, 0, 0, 10, 10), (1, 0.3, 50, 50, 60, 60)], 0.3),  # one more
    ],
)
def test_what_two_sets_of_detections_do_not_share(
    other: list[tuple[float, ...]], expected: float
) -> None:
    one, two = _set((1, 0.8, 0, 0, 10, 10)), _set(*other)
    assert float(detections.difference(one, two)) == pytest.approx(expected, abs=1e-6)
    assert float(detections.difference(two, one)) == pytest.approx(expected, abs=1e-6)


def test_map_is_torchmetrics_for_lists_of_detections() -> None:
    """With COCO's own thresholds; torchmetrics has them rounded to float32."""
    from pycocotools.cocoeval import Params
    from torchmetrics.detection import MeanAveragePrecision

    task, data = ObjectDetection(), nets.boxes(16, 4)
    images, wanted = data.batch
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = nets.lists()(images + 0.3 * noise)
    coco = Params("bbox")
    metric = MeanAveragePrecision(
        iou_thresholds=coco.iouThrs.tolist(), rec_thresholds=coco.recThrs.tolist()
    )
    truth = [{"boxes": b[b[:, 0] >= 0, 1:], "labels": b[b[:, 0] >= 0, 0].int()} for b in wanted]
    metric.update(found, truth)
    expected = float(metric.compute()["map"])
    assert 0.05 < expected < 1
    assert task.measure(task.rows(found, data.batch)) == pytest.approx(expected, abs=1e-6)
    one = found[3], truth[3]
    metric.reset()
    metric.update(*[[each] for each in one])
    alone = float(metric.compute()["map"])
    assert float(task.error(found, data.batch)[3]) == pytest.approx(1 - alone, abs=1e-6)


def test_a_detector_that_finds_nothing_or_gives_something_else_is_refused() -> None:
    task, data = ObjectDetection(), nets.boxes(16, 4)
    shifted = TensorDataset((data.batch[0], data.batch[1] + torch.tensor([90.0, 0, 0, 0, 0])))
    with pytest.raises(DataError, match=r"finds no box of 16 test images: the classes"):
        task.check_dense(nets.lists(), shifted, "lists")
    task.check_dense(nets.lists(), data, "lists")
    with pytest.raises(ModelError, match="list of dicts .* a Task of your own"):
        task.check(nets.anchors()(data.batch[0]), data.batch, data, "test", "anchors")
