"""Readers of `workload.data` by the type of their section, and what they are told besides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from apportion.compressors.progress import Progress, silent
from apportion.db.documents.section import Section
from apportion.evaluators.data.dataset import Splits

S = TypeVar("S", bound=Section)
_READERS: dict[type[Section], Callable[[Any, Context], Splits]] = {}


@dataclass(frozen=True)
class Context:
    """What a reader may have to know besides its section.

    Args:
        model: the model's name in the job: whose tokenizer it is.
        task: the task's name, for messages.
        form: what the task's batches hold (`Task.form`), for readers that serve several tasks.
        classes: the model's names of its classes, in the order of its outputs; None where it has
            none.
        inputs: the arguments that the model names; empty where nothing is known of them.
        progress: told of work that takes long.
    """

    model: str = ""
    task: str = ""
    form: str = ""
    classes: tuple[str, ...] | None = None
    inputs: tuple[str, ...] = ()
    progress: Progress = silent

    def takes(self, name: str) -> bool:
        """Whether batches of text may hold this beside `input_ids`: a model that names its
        arguments without it ignores it, or cannot be called with it."""
        return "input_ids" not in self.inputs or name in self.inputs


def reads(
    section: type[S],
) -> Callable[[Callable[[S, Context], Splits]], Callable[[S, Context], Splits]]:
    """Register a function that reads what sections of this type name. It raises DataError, naming
    the file, folder or function and what would be valid."""

    def keep(reader: Callable[[S, Context], Splits]) -> Callable[[S, Context], Splits]:
        _READERS[section] = reader
        return reader

    return keep


def read(config: Section, context: Context) -> Splits:
    """What a section names, by the reader of its type. Raises DataError, ConfigurationError."""
    return _READERS[type(config)](config, context)
