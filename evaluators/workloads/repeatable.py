"""Whether a model in eval mode gives the same outputs twice: a random one would be searched on
noise."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from apportion.compressors.calibration import call
from apportion.compressors.errors import ModelError
from apportion.evaluators.data import trees
from apportion.evaluators.tasks.task import Inputs

_ROUNDING = 1e-5
"""By how much two runs may differ, as a share of the largest output: sums that threads share."""
_RANDOM = re.compile(
    r"dropout|^rand|bernoulli|multinomial|^normal_?$|uniform|exponential|gumbel|^poisson$"
    r"|scaled_dot_product_attention"
)
"""Names of torch's random functions."""


def check_repeatable(model: nn.Module, name: str, inputs: Inputs) -> None:
    """Run `inputs` [n, ...] through `model` twice. Raises ModelError for outputs that differ, with
    what is random where that can be found, and for outputs that are not numbers."""
    first, second = (_outputs(model, inputs) for _ in range(2))
    if any(bool(torch.isnan(each).any()) for each in first):
        raise ModelError(f"model {name!r}: gives outputs that are not numbers (NaN)")
    if [each.shape for each in first] == [each.shape for each in second]:
        pairs = list(zip(first, second, strict=True))
        if all(_same(one, other) for one, other in pairs):
            return
    raise ModelError(
        f"model {name!r}: gives other outputs for the same inputs when it is run again in eval "
        f"mode, so that candidates cannot be compared; {_culprit(model, inputs)}"
    )


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        outputs = call(model, inputs)
    return [leaf.double() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _same(one: Tensor, other: Tensor) -> bool:
    finite = torch.isfinite(one)
    if not torch.equal(one[~finite], other[~finite]):
        return False
    one, other = one[finite], other[finite]
    if not one.numel():
        return True
    return bool((one - other).abs().max() <= _ROUNDING * one.abs().max())


def _culprit(model: nn.Module, inputs: Inputs) -> str:
    """What is random, in words: modules in training mode, calls of torch's random functions, or the
    first module whose outputs differ."""
    training = [
        f"{name!r} ({type(module).__name__})"
        for name, module in model.named_modules()
        if module.training and name
    ]
    if training:
        return f"in training mode in spite of eval(): {', '.join(training[:5])}"
    few = trees.mapped(lambda tensor: tensor[:2], inputs)
    with _watched(model) as (inside, finished), _RandomCalls(inside) as calls, torch.no_grad():
        call(model, few)
    if calls.found:
        return f"random there: {', '.join(list(calls.found)[:5])}"
    with _watched(model) as (_, again), torch.no_grad():
        call(model, few)
    for (name, one), (_, other) in zip(finished, again, strict=False):
        if one != other:
            return f"the first outputs that differ are those of {name}"
    return "nothing in it that torch knows to be random was found"


class _RandomCalls(TorchFunctionMode):
    """The random functions of torch that are called meanwhile, and where."""

    def __init__(self, inside: list[str]) -> None:
        super().__init__()
        self._inside = inside
        self.found: dict[str, None] = {}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        _types: Any,
        arguments: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
    ) -> Any:
        keywords = keywords or {}
        name = getattr(function, "__name__", "")
        if _RANDOM.search(name) and not _idle(name, arguments, keywords):
            self.found[f"{name}() in {self._inside[-1] if self._inside else 'the model'}"] = None
        return function(*arguments, **keywords)


def _idle(name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Whether a dropout does nothing: its share is 0, or it is not told to train."""
    if name == "scaled_dot_product_attention":
        return not keywords.get("dropout_p", arguments[4] if len(arguments) > 4 else 0)
    if "dropout" not in name:
        return False
    told = keywords.get("training", keywords.get("train", (*arguments, None, None)[2]))
    return told is False


@contextmanager
def _watched(model: nn.Module) -> Iterator[tuple[list[str], list[tuple[str, float]]]]:
    """Which modules are being run, innermost last, and those that are done with the sums of their
    outputs, in order."""
    inside: list[str] = []
    finished: list[tuple[str, float]] = []

    def enter(label: str) -> None:
        inside.append(label)

    def leave(label: str, output: Any) -> None:
        inside.pop()
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        finished.append((label, sum(float(tensor.double().sum()) for tensor in tensors)))

    handles = []
    for name, module in model.named_modules():
        label = f"{name!r} ({type(module).__name__})" if name else f"the {type(module).__name__}"
        handles.append(module.register_forward_pre_hook(lambda _m, _i, label=label: enter(label)))
        handles.append(
            module.register_forward_hook(lambda _m, _i, output, label=label: leave(label, output))
        )
    try:
        yield inside, finished
    finally:
        for handle in handles:
            handle.remove()
