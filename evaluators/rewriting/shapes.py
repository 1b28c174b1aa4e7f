"""Programs whose inputs have a fixed shape where an exporter cannot keep a dimension open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from apportion.compressors.errors import ModelError
from apportion.evaluators.data import trees

T = TypeVar("T")


def widest(axes: Sequence[str], make: Callable[[Sequence[str]], T]) -> tuple[T, list[str]]:
    """What `make` gives for as many of the leading `axes` as it takes without a ModelError, and a
    sentence where these are not all: the others then have the example's sizes. Raises the first
    ModelError where it takes none at all."""
    first: ModelError | None = None
    for count in range(len(axes), -1, -1):
        try:
            made = make(axes[:count])
        except ModelError as error:
            first = first or error
            continue
        fixed = " and ".join(axes[count:])
        return made, [f"Inputs have one size along {fixed}: {first}."] if fixed else []
    assert first is not None
    raise first


def by_size(run: Callable[..., Any], size: int | None) -> Callable[..., Any]:
    """`run`, which takes `size` rows at a time, for as many of them as there are; itself where it
    takes any number (None)."""
    if size is None:
        return run

    def apart(*args: Any, **kwargs: Any) -> Any:
        rows, parts = len(trees.tensors((args, kwargs))[0]), []
        for start in range(0, rows, size):

            def cut(tensor: Tensor, start: int = start) -> Tensor:
                return tensor[start : start + size]

            parts.append(run(*trees.mapped(cut, args), **trees.mapped(cut, kwargs)))
        return trees.joined(parts)

    return apart


def reason(error: BaseException) -> str:
    """The first line of what an exporter's error came from: its own says which step of how many
    failed."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def export_dim(_name: str) -> Any:
    """A dimension of any size that the model's code allows: torch.export finds its limits."""
    return torch.export.Dim.DYNAMIC
