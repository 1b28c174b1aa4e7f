"""A task from functions, for programs that have a loss and a metric at hand."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from apportion.compressors.calibration import call
from apportion.compressors.errors import ConfigurationError
from apportion.evaluators.data import trees
from apportion.evaluators.data.dataset import Batch, Dataset
from apportion.evaluators.data.padding import mask_of, without_padding
from apportion.evaluators.tasks import divergences
from apportion.evaluators.tasks.distribution import Distribution
from apportion.evaluators.tasks.task import Inputs, Metric, Outputs, Task
from apportion.evaluators.tasks.text.tokens import TextTask

Scores = Callable[[Outputs, Batch], Tensor]


class FunctionTask(Task):
    """What a model is for, given by functions of its outputs on a batch, and the batch: each gives
    a tensor [n], a value for each sample. `apportion.Task` is this class; a subclass of
    `apportion.evaluators.tasks.task.Task` can say more.

        task = apportion.Task(
            forward=lambda model, batch: model(batch["ids"], mask=batch["mask"]).logits,
            loss=lambda logits, batch: F.cross_entropy(logits, batch["label"], reduction="none"),
            metric=lambda logits, batch: (logits.argmax(1) == batch["label"]).float(),
            divergence="kl",
        )

    Args:
        loss: at least 0, lower is better.
        metric: its mean over all samples is the metric.
        forward: (model, batch) -> outputs, calling the model once; by default the model is called
            with a dict's values by keyword, with the first of a tuple's or list's, or with the
            batch itself.
        divergence: (outputs, the dense model's outputs, batch) -> [n], at least 0, 0 where they are
            the same; or "kl", where outputs are logits [n, ..., classes], or "squares", the mean
            squared difference. By default squares.
        name: of the metric; by default its function's.
        unit: of the metric, such as %.
        higher_is_better: the metric's direction.
        best: the metric's best value; the fitness `error` is the distance to it. By default 0
            where lower is better, else 1, or 100 where the unit is %.
        tolerance: by how much an exported model's metric may differ, a thousandth of it aside.

    Raises:
        ConfigurationError: a name that no metric can have, or an unknown divergence.
    """

    metric: Metric  # type: ignore[misc]  # an instance's own here

    def __init__(
        self,
        loss: Scores,
        metric: Scores,
        *,
        forward: Callable[[Any, Batch], Outputs] | None = None,
        divergence: str | Callable[[Outputs, Outputs, Batch], Tensor] = "squares",
        name: str = "",
        unit: str = "",
        higher_is_better: bool = True,
        best: float | None = None,
        tolerance: float = 1e-3,
    ) -> None:
        if isinstance(divergence, str) and divergence not in _DIVERGENCES:
            raise ConfigurationError(
                f"divergence {divergence!r}: valid are {', '.join(_DIVERGENCES)}, or a function"
            )
        own = name or getattr(metric, "__name__", "score")
        self.metric = Metric(
            *("score" if own == "<lambda>" else own, unit, higher_is_better, tolerance),
            relative=1e-3,
        )
        highest = 100.0 if unit == "%" else 1.0
        self._best = best if best is not None else (highest if higher_is_better else 0.0)
        self._loss, self._metric, self._forward = loss, metric, forward
        self._divergence = _DIVERGENCES[divergence] if isinstance(divergence, str) else divergence

    def forward(self, model: Callable[..., Any], batch: Batch) -> Outputs:
        return self._forward(model, batch) if self._forward else call(model, self.inputs(batch))

    def inputs(self, batch: Batch) -> Inputs:
        """What `forward` calls the model with."""
        if self._forward is None:
            return batch[0] if isinstance(batch, tuple | list) else batch
        seen = _Seen()
        try:
            self._forward(seen, batch)
        except _StopError:
            pass
        except AttributeError as error:
            raise ConfigurationError(
                f"task: forward uses more of the model than calling it ({error}); write a subclass "
                "of apportion.evaluators.tasks.task.Task with `inputs`"
            ) from error
        if seen.inputs is None:
            raise ConfigurationError("task: forward does not call the model")
        return seen.inputs

    def unpadded(self, inputs: Inputs) -> list[Inputs]:
        return without_padding(inputs)

    def open_axes(self, inputs: Inputs) -> tuple[str, ...]:
        """Texts are of any length."""
        return self.axes if mask_of(inputs) is None else TextTask.axes

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        return self._loss(outputs, batch).double()

    def divergence(self, outputs: Outputs, dense: Outputs, batch: Batch) -> Tensor:
        return self._divergence(outputs, dense, batch).double()

    def distributions(self, outputs: Outputs, batch: Batch) -> list[Distribution]:
        """Of outputs that are logits, where the divergence is "kl"."""
        if not self.has_distributions:
            return super().distributions(outputs, batch)
        (logits,) = trees.tensors(outputs)
        shape = logits.shape[:-1]
        return [Distribution(logits, logits.new_full(shape, 1 / max(1, shape[1:].numel())))]

    @property
    def has_distributions(self) -> bool:
        return self._divergence is _DIVERGENCES["kl"]

    def error(self, outputs: Outputs, batch: Batch) -> Tensor:
        value = self._metric(outputs, batch).double()
        return self._best - value if self.metric.higher_is_better else value - self._best

    def check(
        self, outputs: Outputs, batch: Batch, dataset: Dataset, what: str, model: str
    ) -> None:
        """No sample is better than the best."""
        del dataset, what, model
        try:
            least = float(self.error(outputs, batch).min())
        except Exception:  # the user's own: said with all else that is checked of values
            return
        if least < 0:
            higher = self.metric.higher_is_better
            found = self._best - least if higher else self._best + least
            raise ConfigurationError(
                f"task: metric {self.metric.name!r} is {found:.4g} for a sample, better than its "
                f"best value, {self._best:g}, as {'higher' if higher else 'lower'} is better; "
                f"say best=..., or higher_is_better={not higher}"
            )

    def rows(self, outputs: Outputs, batch: Batch) -> Tensor:
        return self._metric(outputs, batch).double()[:, None]

    def measure(self, rows: Tensor) -> float:
        return float(rows.mean())

    def key(self) -> dict[str, str]:
        """The functions' code: scores that were kept hold for these alone."""
        digest = hashlib.sha256()
        for function in (self._loss, self._metric, self._forward, self._divergence):
            digest.update("\n".join(_code(function, set())).encode())
        return {"task": f"functions {digest.hexdigest()[:16]} {self._best}"}


class _StopError(BaseException):
    """The model was called: what follows needs its outputs."""


class _Seen:
    """Stands for a model, and sees what it is called with."""

    def __init__(self) -> None:
        self.inputs: Inputs = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args and kwargs:
            raise ConfigurationError(
                "task: forward calls the model with arguments by position and by keyword; give all "
                "by keyword"
            )
        self.inputs = kwargs if kwargs else (args[0] if len(args) == 1 else args)
        raise _StopError


def _squares(outputs: Outputs, dense: Outputs, batch: Batch) -> Tensor:  # noqa: ARG001
    """Mean squared difference of each sample, over all that is a number in the outputs."""
    total, count = torch.zeros(()), 0
    for one, other in zip(trees.tensors(outputs), trees.tensors(dense), strict=True):
        if one.is_floating_point():
            difference = (one.double() - other.double()).square().reshape(len(one), -1)
            total, count = total.to(one.device) + difference.sum(1), count + difference.shape[1]
    return total / max(1, count)


def _kl(outputs: Outputs, dense: Outputs, batch: Batch) -> Tensor:  # noqa: ARG001
    """KL(dense || outputs) over the last dimension in nats, averaged over those between."""
    (one,), (other,) = trees.tensors(outputs), trees.tensors(dense)
    each = divergences.categorical(one, other, -1)
    return each.reshape(len(each), -1).mean(1)


_DIVERGENCES: dict[str, Callable[[Outputs, Outputs, Batch], Tensor]] = {
    "squares": _squares,
    "kl": _kl,
}


def _code(value: Any, seen: set[int]) -> Iterator[str]:
    """What a function computes, as far as its code tells: instructions, constants, the names that
    it uses, defaults, and what it closes over."""
    if isinstance(value, types.MethodType):
        yield from _code(value.__func__, seen)
        yield from _code(vars(value.__self__), seen) if hasattr(value.__self__, "__dict__") else ()
    elif isinstance(value, types.FunctionType):
        if id(value) in seen:
            return
        seen.add(id(value))
        yield from _code(value.__code__, seen)
        yield from _code(value.__defaults__, seen)
        yield from _code(value.__kwdefaults__, seen)
        for cell in value.__closure__ or ():
            yield from _code(cell.cell_contents, seen)
        for name in value.__code__.co_names:  # helpers of the same program
            helper = value.__globals__.get(name)
            if isinstance(helper, types.FunctionType | int | float | str):
                yield name
                yield from _code(helper, seen)
    elif isinstance(value, types.CodeType):
        yield value.co_code.hex()
        yield repr(value.co_names)
        for constant in value.co_consts:
            yield from _code(constant, seen)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _code(item, seen)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield repr(key)
            yield from _code(item, seen)
    elif isinstance(value, Tensor):
        yield repr(value.detach().cpu().double().flatten().tolist())
    elif isinstance(value, int | float | complex | str | bytes | bool | type(None)):
        yield repr(value)
    else:
        kind = value if isinstance(value, type) or callable(value) else type(value)
        yield f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', type(value))}"
