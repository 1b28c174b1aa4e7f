"""Training between two steps that holds nothing: what a step set to zero may come back before the
next one chooses."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_model

from apportion.compressors.progress import Progress, silent
from apportion.db.files import write_atomically
from apportion.evaluators.models.build import load_weights
from apportion.evaluators.training.config import FinetuneConfig
from apportion.evaluators.training.recovery import teacher_of
from apportion.search.runs.pipeline import ModelProblem
from apportion.search.schedules.training import forget, train

REGROWN = "regrown.safetensors"
"""The model of a step after that training."""


def regrow(
    problem: ModelProblem, config: FinetuneConfig, folder: Path, progress: Progress = silent
) -> None:
    """Train the model that a step exported to `folder`, all its weights, beside it. Raises
    OutputError."""
    model = teacher_of(problem.workload.model)
    load_weights(model, folder / "model.safetensors")
    states, teacher = folder / "regrowing", problem.teacher or problem.workload.model
    train(model, teacher, problem.workload, problem.job, config, states, progress)
    write_atomically(folder / REGROWN, lambda path: save_model(model, str(path), {"format": "pt"}))
    forget(states)
