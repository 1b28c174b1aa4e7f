"""Small problems with channel levels, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import apportion
from apportion.compressors.levels import parse_level
from apportion.db.layers.profile import Profile
from apportion.search.runs.pipeline import ModelProblem

TASK = apportion.Task(
    forward=lambda model, batch: model(batch),
    loss=lambda out, _: out.square().mean(1),
    metric=lambda out, _: out.square().mean(1),
    name="mean square",
    higher_is_better=False,
    divergence="kl",
)
LEVELS = ("dense", "channels-0.25", "channels-0.50", "channels-0.75")
JOINT = (
    "dense",
    "w8",
    "channels-0.50",
    "channels-0.50+w8",
    "channels-0.50+2:4",
    "channels-0.75+w4",
)


def channel_problem(
    model: nn.Module, x: Tensor, path: Path, levels: tuple[str, ...] = LEVELS, **sections: Any
) -> ModelProblem:
    """Of `model` on the samples `x`, with channels in multiples of two."""
    sections.setdefault("database_options", {"channels": {"multiple": 2}})
    return apportion.prepare(
        model,
        task=TASK,
        calibration=[x],
        test=[x],
        levels=levels,
        budgets=sections.pop("budgets", {}),
        database=path,
        **sections,
    )


def some_profile(problem: ModelProblem, seed: int) -> tuple[tuple[int, ...], Profile]:
    rng = np.random.default_rng(seed)
    candidate = tuple(int(rng.integers(len(own))) for own in problem.levels().values())
    chosen = zip(problem.levels().items(), candidate, strict=True)
    return candidate, {name: parse_level(levels[i]) for (name, levels), i in chosen}


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        made: Tensor = model(x)
    return made
