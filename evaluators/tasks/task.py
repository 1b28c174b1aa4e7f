"""Task: what a model is for. The one seam between models with their data and all the rest: nothing
outside a task knows what a batch, an output or a label is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apportion.compressors.calibration import call, count_samples
from apportion.compressors.errors import ConfigurationError
from apportion.compressors.progress import Progress, silent
from apportion.evaluators.data import trees
from apportion.evaluators.data.augment import AugmentConfig
from apportion.evaluators.data.dataset import Batch, Dataset
from apportion.evaluators.tasks.distribution import Distribution
from apportion.evaluators.tasks.metric import Metric

__all__ = ["Inputs", "Metric", "Outputs", "Task"]

Inputs = Any
"""What a model is called with: a tensor, a tuple of arguments, or a dict of keywords."""
Outputs = Any
"""What a model gives: the task's own business."""


class Task(ABC):
    """How a batch is fed to the model, and what its outputs are worth.

    A batch is a tree of tensors [n, ...] (a tensor, or a tuple, list or dict of trees), with all
    that a sample has, what it should be included, as the data set hands it out. Every method that
    is given a batch is given the whole of it. Outputs are whatever the model returns. Batch and
    outputs are on one device, which need not be the CPU; what a method returns is on it too.

    A task of your own is a subclass in a file of your own, made without arguments. A job names it
    by `workload.task: {kind: package.module:Class}`, or by the name that `register_task` gave it.

        class Tagging(Task):
            metric = Metric("tag accuracy", "%", higher_is_better=True, tolerance=0.1)

            def inputs(self, batch):
                return {"ids": batch["ids"], "mask": batch["mask"]}
            ...

    To write: `metric`, `inputs`, `loss`, `divergence`, `error`, `measure`. To override where the
    default does not fit: `samples`, `reference`, `unpadded`, `open_axes`, `rows`, `check`, for
    tables of KL `distributions`, and for recovery and augmentation `distance`, `distill`,
    `supervise`, `augment`. Leave `forward` and `identity` alone. tests/contracts/test_task.py is
    the suite that every task must pass: add yours to its list.

    Two rules hold for `loss`, `divergence` and `error`: a sample's value depends on that sample
    alone (so that it is the same in a batch of another size), and it is given for every sample, in
    the batch's order. What is padding must not count. Compute them in float64 (`outputs.double()`):
    searches compare candidates that differ in the last digits of a float32.

    Attributes:
        metric: what reports say of a model.
        kind: the name that a job uses; empty for `package.module:Class`.
        form: what batches hold, where the data come from a reader that serves several tasks
            (one of evaluators/data/forms.py): texts with a class, packed tokens ... Empty where
            they are images, or come from a function of one's own.
        version: raise it whenever values change: scores kept in a run store, and tables kept in a
            database, hold for one version.
        auto: the class of transformers that makes a model `huggingface:NAME` for it. Its outputs
            are ModelOutput objects, but for image classifiers, which come as their logits.
        axes: what the leading dimensions of all inputs are, as far as their size may be another at
            every call: exported programs keep these open. `open_axes` is told the inputs.
    """

    metric: ClassVar[Metric]
    kind: ClassVar[str] = ""
    form: ClassVar[str] = ""
    version: ClassVar[int] = 1
    auto: ClassVar[str] = "AutoModel"
    axes: ClassVar[tuple[str, ...]] = ("batch",)

    @abstractmethod
    def inputs(self, batch: Batch) -> Inputs:
        """What of a batch the model is called with: a dict is passed by keyword, a tuple one by
        one, anything else as the one argument. Models that take a single tensor are scored fastest:
        prefixes of theirs are reused. What should come out must not go in."""

    def forward(self, model: Callable[..., Any], batch: Batch) -> Outputs:
        """The outputs of `model` (a module, or whatever runs an exported one) on a batch."""
        return call(model, self.inputs(batch))

    def samples(self, batch: Batch) -> int:
        """How many samples a batch holds: by default the first dimension of its first tensor.
        Fitnesses and layer errors are means over samples."""
        return count_samples(batch)

    @abstractmethod
    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """float64 [n], at least 0, lower is better: what the model was trained to minimise, of each
        sample alone, such as cross-entropy in nats. The fitness `loss`. One that may be negative
        needs a constant added: scoring stops early on the strength of this."""

    @abstractmethod
    def divergence(self, outputs: Outputs, dense: Outputs, batch: Batch) -> Tensor:
        """float64 [n], at least 0, lower is better: how far the outputs of each sample are from the
        dense model's on the same batch (`dense` is the `reference` of those), 0 where they are the
        same; such as KL(dense || outputs) in nats. Needs no labels.
        The fitness `kl`, and what the final pick is made by."""

    @abstractmethod
    def error(self, outputs: Outputs, batch: Batch) -> Tensor:
        """float64 [n], at least 0, lower is better: the metric of each sample alone as something to
        minimise, such as 1 for a wrong answer. The fitness `error`."""

    def reference(self, outputs: Outputs, batch: Batch) -> Outputs:  # noqa: ARG002
        """What of the dense model's outputs on a batch is kept, for `divergence` to be given as
        `dense`: by default all of it. Override it where that is much: the largest logits of a large
        vocabulary, what stands at positions that count. A tree of tensors."""
        return outputs

    def distributions(self, outputs: Outputs, batch: Batch) -> list[Distribution]:  # noqa: ARG002
        """The distributions over outcomes of which `divergence` is the weighted sum of KLs, where
        the outputs are logits of such: what `errors: kl` and `errors: fisher` are for, which
        other tasks are refused. Raises ConfigurationError where there are none, the default."""
        raise ConfigurationError(
            f"task {self.identity} has no distribution over outcomes (`distributions`)"
        )

    @property
    def has_distributions(self) -> bool:
        """Whether `distributions` gives any."""
        return type(self).distributions is not Task.distributions

    def open_axes(self, inputs: Inputs) -> tuple[str, ...]:  # noqa: ARG002
        """The `axes` of these inputs: override it where texts have one more than other data."""
        return self.axes

    def unpadded(self, inputs: Inputs) -> list[Inputs]:
        """What the model is called with for the same samples so that no padding goes in, in parts
        of equal length (`data.padding.by_length`). What is measured inside the model (Hessians,
        grids of inputs, corrections) is measured on these. By default there is no padding."""
        return [inputs]

    def rows(self, outputs: Outputs, batch: Batch) -> Tensor:
        """float64 [n, k]: what the metric is computed from, a row for each sample; by default the
        `error` alone, k = 1. Override it where the metric is no mean over samples, as one over the
        tokens of all samples: (wrong tokens, tokens)."""
        return self.error(outputs, batch)[:, None]

    @abstractmethod
    def measure(self, rows: Tensor) -> float:
        """The metric's value, in its unit, from the `rows` [N, k] of all samples of a data set. It
        may not depend on their order."""

    def distance(self, outputs: Outputs, dense: Outputs, batch: Batch) -> Tensor:  # noqa: ARG002
        """A scalar to minimise by gradients, 0 where the outputs are the dense model's: what the
        recovery step lintune trains on. By default the mean squared difference, averaged over the
        tensors of the outputs; override it where these hold padding."""
        pairs = zip(trees.tensors(outputs), trees.tensors(dense), strict=True)
        parts = [F.mse_loss(one, other) for one, other in pairs if one.is_floating_point()]
        return parts[0] if len(parts) == 1 else torch.stack(parts).mean()

    def distill(
        self,
        outputs: Outputs,
        dense: Outputs,
        batch: Batch,
        temperature: float,  # noqa: ARG002
    ) -> Tensor:
        """A scalar to minimise by gradients: the teacher's part of the recovery step finetune. By
        default the mean `divergence`, which must let gradients through then; tasks with a softmax
        soften it by `temperature` (Hinton et al. 2015)."""
        return self.divergence(outputs, self.reference(dense, batch), batch).mean()

    def supervise(self, outputs: Outputs, batch: Batch, smoothing: float) -> Tensor:
        """A scalar to minimise by gradients: the labels' part of the recovery step finetune. By
        default the mean `loss`. Raises ConfigurationError where `smoothing` (of labels) is above 0
        and the task knows none."""
        if smoothing:
            raise ConfigurationError(
                f"recovery.finetune.smoothing: task {self.identity} has no label smoothing; it "
                "must be 0"
            )
        return self.loss(outputs, batch).mean()

    def augment(self, batch: Batch, config: AugmentConfig, generator: torch.Generator) -> Batch:  # noqa: ARG002
        """The batch (on the CPU) with its samples changed at random, all chance from `generator`.
        Raises ConfigurationError where the task has no augmentation, which is the default."""
        raise ConfigurationError(
            f"augment: task {self.identity} has no augmentation; leave it out of database and "
            "recovery.finetune"
        )

    def check_inputs(self, model: nn.Module, dataset: Dataset, what: str, name: str) -> None:  # noqa: B027
        """Whether samples can be fed to the model at all, before any is; by default nothing is
        looked at.

        Args:
            model: in eval mode.
            dataset: all samples.
            what: calibration, train or test, for messages.
            name: the model's name, for messages.

        Raises:
            DataError, ModelError: they cannot; says why, and what would be valid.
        """

    def check(  # noqa: B027
        self, outputs: Outputs, batch: Batch, dataset: Dataset, what: str, model: str
    ) -> None:
        """Whether model and data go together, before anything is computed; by default all do.

        Args:
            outputs: the dense model's on `batch`.
            batch: the first samples of `dataset`, two at most.
            dataset: all of them.
            what: calibration, train or test, for messages.
            model: the model's name, for messages.

        Raises:
            DataError, ModelError: they do not go together; says why, and what would be valid.
        """

    def check_dense(  # noqa: B027
        self, model: nn.Module, test: Dataset, name: str, progress: Progress = silent
    ) -> None:
        """Whether the dense model is any good on the test data: one that is not was given wrong
        labels, inputs or weights. By default nothing is said. Raises DataError."""

    @property
    def identity(self) -> str:
        """The name that a job uses for it."""
        return self.kind or f"{type(self).__module__}:{type(self).__qualname__}"

    def key(self) -> dict[str, str]:
        """What tells its values from other tasks', as part of what identifies a problem."""
        return {"task": f"{self.identity} {self.version}"}
