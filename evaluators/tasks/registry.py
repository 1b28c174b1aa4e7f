"""Tasks by name: built in, registered by a user's own code, or `package.module:Class`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from apportion.compressors.errors import (
    ApportionError,
    ConfigurationError,
    UnknownNameError,
    first_line,
)
from apportion.compressors.user_code import load_object
from apportion.evaluators.tasks.image_classification import ImageClassification
from apportion.evaluators.tasks.multi_label import MultiLabel
from apportion.evaluators.tasks.regression import Regression
from apportion.evaluators.tasks.task import Metric, Task
from apportion.evaluators.tasks.text.causal_lm import CausalLM
from apportion.evaluators.tasks.text.masked_lm import MaskedLM
from apportion.evaluators.tasks.text.question_answering import QuestionAnswering
from apportion.evaluators.tasks.text.sentence_similarity import SentenceSimilarity
from apportion.evaluators.tasks.text.text_classification import TextClassification
from apportion.evaluators.tasks.vision.object_detection import ObjectDetection
from apportion.evaluators.tasks.vision.semantic_segmentation import SemanticSegmentation

_BUILT_IN: tuple[type[Task], ...] = (
    CausalLM,
    ImageClassification,
    MaskedLM,
    QuestionAnswering,
    SentenceSimilarity,
    TextClassification,
    MultiLabel,
    ObjectDetection,
    Regression,
    SemanticSegmentation,
)
_TASKS: dict[str, type[Task]] = {task.kind: task for task in _BUILT_IN}


def register_task(name: str) -> Callable[[type[Task]], type[Task]]:
    """Register a subclass of Task under `name`, which becomes its `kind`."""

    def keep(task: type[Task]) -> type[Task]:
        task.kind = name
        _TASKS[name] = task
        return task

    return keep


def check_task(name: str) -> None:
    """Raises UnknownNameError for what is neither registered nor of the form module:Class; runs
    nobody's code."""
    if name not in _TASKS and ":" not in name:
        raise UnknownNameError("task", name, [*_TASKS, "package.module:Class"])


def make_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """The task called `name`, made with `options`, which are those of the job's `workload.task`.
    Raises UnknownNameError, ConfigurationError."""
    check_task(name)
    found = _TASKS[name] if name in _TASKS else load_object(name, "task")
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ConfigurationError(
            f"task {name!r} is not a subclass of apportion.evaluators.tasks.task.Task"
        )
    if not isinstance(getattr(found, "metric", None), Metric):
        raise ConfigurationError(f"task {name!r} has no `metric`, a Metric with name and unit")
    options = dict(options or {})
    if unknown := [key for key in options if key not in inspect.signature(found).parameters]:
        raise ConfigurationError(f"workload.task.{unknown[0]}: task {name!r} has no such option")
    try:
        return found(**options)
    except ApportionError:
        raise
    except Exception as error:  # the user's own code, or an abstract method that is missing
        raise ConfigurationError(f"task {name!r} cannot be made: {first_line(error)}") from error
