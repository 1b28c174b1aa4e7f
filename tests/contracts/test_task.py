"""What every task must do. A new task adds one line to TASKS."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.compressors.errors import ConfigurationError
from apportion.evaluators.data import trees
from apportion.evaluators.data.augment import AugmentConfig
from apportion.evaluators.data.dataset import TensorDataset
from apportion.evaluators.data.splits import TensorSplit
from apportion.evaluators.models.build import build_model
from apportion.evaluators.tasks import divergences
from apportion.evaluators.tasks.image_classification import ImageClassification
from apportion.evaluators.tasks.multi_label import MultiLabel
from apportion.evaluators.tasks.regression import Regression
from apportion.evaluators.tasks.task import Task
from apportion.evaluators.tasks.vision.object_detection import ObjectDetection
from apportion.evaluators.tasks.vision.semantic_segmentation import SemanticSegmentation
from tests import language_cases
from tests.tagging import Tagging, sentences, tagger
from tests.vision import nets


@dataclass(frozen=True)
class Case:
    """A task, a model that is good at it, and at least eight samples."""

    task: Task
    model: nn.Module
    data: TensorDataset


def _images() -> Case:
    torch.manual_seed(0)
    model = build_model("digits_resnet")
    inputs = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        right = model(inputs).argmax(1)
    labels = torch.where(torch.arange(12) % 6 == 0, (right + 1) % 10, right)
    return Case(ImageClassification(), model, TensorSplit(inputs, labels))


TASKS: dict[str, Callable[[], Case]] = {
    "image-classification": _images,
    "tests.tagging:Tagging": lambda: Case(Tagging(), tagger(), sentences(12, 0)),
    "text-classification": lambda: Case(*language_cases.classification()),
    "sentence-similarity": lambda: Case(*language_cases.similarity("mean")),
    "sentence-similarity, cls": lambda: Case(*language_cases.similarity("cls")),
    "question-answering": lambda: Case(*language_cases.answering()),
    "masked-lm": lambda: Case(*language_cases.masked()),
    "causal-lm": lambda: Case(*language_cases.causal()),
    "semantic-segmentation": lambda: Case(SemanticSegmentation(), nets.unet(), nets.masks(12, 0)),
    "object-detection": lambda: Case(ObjectDetection(), nets.lists(), nets.boxes(12, 0)),
    "DenseDetection": lambda: Case(nets.AnchorDetection(), nets.anchors(), nets.boxes(12, 0)),
    "regression": lambda: Case(Regression(), nets.mlp(), nets.numbers(12, 0)),
    "multi-label": lambda: Case(MultiLabel(), nets.mlp(), nets.labels(12, 0)),
    "regression, two inputs": lambda: Case(Regression(), nets.two(), nets.pairs(12, 0)),
}


@pytest.fixture(params=TASKS)
def case(request: pytest.FixtureRequest) -> Case:
    return TASKS[request.param]()


def outputs_of(case: Case, model: nn.Module, batch: Any) -> Any:
    with torch.no_grad():
        return case.task.forward(model, batch)


def worse(model: nn.Module) -> nn.Module:
    """The model with most of its weights moved."""
    made, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * parameter.std())
    return made


def values(case: Case, batch: Any) -> dict[str, Tensor]:
    """What the task gives for each sample."""
    dense, found = (outputs_of(case, m, batch) for m in (case.model, worse(case.model)))
    return {
        "loss": case.task.loss(found, batch),
        "divergence": case.task.divergence(found, case.task.reference(dense, batch), batch),
        "error": case.task.error(found, batch),
    }


def test_every_sample_has_one_value_of_at_least_zero(case: Case) -> None:
    batch = case.data.batch
    assert case.task.samples(batch) == len(case.data)
    for what, value in values(case, batch).items():
        assert value.shape == (len(case.data),), what
        assert value.dtype == torch.float64, what
        assert bool((value >= 0).all()), what
    rows = case.task.rows(outputs_of(case, case.model, batch), batch)
    assert rows.dtype == torch.float64
    assert rows.dim() == 2
    assert len(rows) == len(case.data)


def test_the_divergence_is_the_weighted_kl_of_its_distributions(case: Case) -> None:
    """Where there are any; else a task says so."""
    batch = case.data.batch
    dense, found = (outputs_of(case, m, batch) for m in (case.model, worse(case.model)))
    if not case.task.has_distributions:
        with pytest.raises(ConfigurationError, match="has no distribution over outcomes"):
            case.task.distributions(dense, batch)
        return
    total = torch.zeros(len(case.data), dtype=torch.float64)
    pairs = [case.task.distributions(own, batch) for own in (dense, found)]
    for before, after in zip(*pairs, strict=True):
        kl = (
            divergences.binary(after.logits, before.logits)
            if before.binary
            else _categorical(after.logits, before.logits)
        )
        assert kl.shape == before.weight.shape == after.weight.shape
        total += (before.weight * kl).reshape(len(total), -1).sum(1)
    expected = case.task.divergence(found, case.task.reference(dense, batch), batch)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-9)


def _categorical(found: Tensor, dense: Tensor) -> Tensor:
    """KL over the last dimension, outcomes of no probability left out."""
    target, made = dense.double().log_softmax(-1), found.double().log_softmax(-1)
    return torch.where(target > -torch.inf, target.exp() * (target - made), 0.0).sum(-1)


def test_a_samples_values_depend_on_it_alone(case: Case) -> None:
    whole = values(case, case.data.batch)
    order = [5, 0, 7, 2]
    parts = values(case, case.data.subset(order).batch)
    for what, value in parts.items():
        torch.testing.assert_close(value, whole[what][order], rtol=1e-4, atol=1e-6)


def test_nothing_diverges_from_itself_and_another_model_does(case: Case) -> None:
    dense = outputs_of(case, case.model, case.data.batch)
    kept = case.task.reference(dense, case.data.batch)
    assert float(case.task.divergence(dense, kept, case.data.batch).max()) == 0
    assert float(values(case, case.data.batch)["divergence"].mean()) > 0


def test_the_metric_of_all_is_that_of_its_batches_in_any_order(case: Case) -> None:
    def rows(batch: Any) -> Tensor:
        return case.task.rows(outputs_of(case, case.model, batch), batch)

    whole = rows(case.data.batch)
    value = case.task.measure(whole)
    assert isinstance(value, float)
    assert math.isfinite(value)
    pieces = torch.cat([rows(batch) for batch in case.data.batches(5)])
    assert case.task.measure(pieces) == pytest.approx(value)
    assert case.task.measure(whole.flip(0)) == pytest.approx(value)


def test_the_metric_moves_against_the_error_in_its_direction(case: Case) -> None:
    found = {}
    for name, model in (("good", case.model), ("bad", worse(case.model))):
        outputs = outputs_of(case, model, case.data.batch)
        error = float(case.task.error(outputs, case.data.batch).mean())
        found[name] = error, case.task.measure(case.task.rows(outputs, case.data.batch))
    assert found["good"][0] < found["bad"][0]
    better = found["good"][1] > found["bad"][1]
    assert better == case.task.metric.higher_is_better


def test_recovery_has_scalars_to_minimise_by_gradients(case: Case) -> None:
    model, batch = worse(case.model), case.data.batch
    dense = outputs_of(case, case.model, batch)
    parts: list[Callable[[Any], Tensor]] = [
        lambda outputs: case.task.distance(outputs, dense, batch),
        lambda outputs: case.task.distill(outputs, dense, batch, 2.0),
        lambda outputs: case.task.supervise(outputs, batch, 0.0),
    ]
    for part in parts:
        model.zero_grad()
        value = part(case.task.forward(model, batch))
        assert value.dim() == 0
        assert float(value.detach()) > 0
        value.backward()
        assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    assert float(parts[0](dense)) == 0


def test_augmentation_is_decided_by_its_generator_or_refused_by_name(case: Case) -> None:
    def augmented(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return case.task.augment(case.data.batch, AugmentConfig(crop=1), generator)

    if type(case.task).augment is Task.augment:
        with pytest.raises(ConfigurationError, match=re.escape(case.task.identity)):
            augmented(0)
        return
    first, again = augmented(0), augmented(0)
    pairs = list(zip(trees.tensors(first), trees.tensors(again), strict=True))
    assert all(torch.equal(*pair) for pair in pairs)
    before = trees.tensors(case.data.batch)
    assert [x.shape for x, _ in pairs] == [x.shape for x in before]
    assert not all(torch.equal(*p) for p in zip(before, trees.tensors(first), strict=True))


def test_a_task_travels_and_keeps_its_name(case: Case) -> None:
    there = pickle.loads(pickle.dumps(case.task))
    assert there.identity == case.task.identity
    assert there.key() == case.task.key()
    assert case.task.metric.text(1.0).startswith(case.task.metric.number(1.0))
