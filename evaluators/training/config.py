"""The job file's `recovery`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from apportion.db.documents.section import Section
from apportion.evaluators.data.augment import AugmentConfig

log = logging.getLogger(__name__)


_RENAMED = {"rate": "learning_rate", "decay": "weight_decay"}
"""Keys of version 0.1.0."""


class _Config(Section):
    @model_validator(mode="before")
    @classmethod
    def _accept_old_keys(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        renamed = {}
        for key, value in content.items():
            new = _RENAMED.get(key, key)
            if new not in cls.model_fields or new in content:
                new = key
            if new != key:
                log.warning("recovery: the key %r is called %r now", key, new)
            renamed[new] = value
        return renamed


class LintuneConfig(_Config):
    """Tuning of biases and normalisations, by Adam."""

    epochs: int = Field(20, ge=1, description="Passes over the calibration data.")
    learning_rate: float = Field(1e-3, gt=0, description="Falls to 0 as a cosine.")


class AdaPruneConfig(_Config):
    """Global AdaPrune, by Adam."""

    epochs: int = Field(20, ge=1, description="Passes over the calibration data.")
    learning_rate: float = Field(3e-4, gt=0, description="Falls to 0 as a cosine.")


class FinetuneConfig(_Config):
    """Training with the dense model as teacher, by SGD with momentum 0.9."""

    epochs: int = Field(2, ge=1, description="Passes over the training data.")
    learning_rate: float = Field(
        0.01,
        gt=0,
        description="Rises over the warm-up, then falls to 0 as a cosine.",
    )
    warmup: float = Field(
        0.1, ge=0, lt=1, description="Share of the steps in which the rate rises."
    )
    teacher: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Share of the loss that is divergence from the dense outputs (KL); the labels' "
        "is the rest.",
    )
    temperature: float = Field(
        2.0, gt=0, description="Of the softmax in the teacher's part, in tasks that have one."
    )
    smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing.")
    weight_decay: float = Field(1e-4, ge=0, description="Of all weights.")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay per step of the moving average that weights end as; 0: none.",
    )
    augment: AugmentConfig | None = Field(
        None, description="Random crops and mirror images; `rounds` is left out of account."
    )
    workers: int = Field(
        0,
        ge=0,
        description="Ray Train workers that share each batch, with the CPUs and GPUs of the job's "
        "workers; 0: one process.",
    )


class RecoveryConfig(_Config):
    """Training of the exported model, in this order; null: none."""

    rewind: Path | None = Field(
        None,
        description="A file of the dense model's early weights (.safetensors, .pt): what is left "
        "is set back to them before it is trained.",
    )
    lintune: LintuneConfig | None = None
    adaprune: AdaPruneConfig | None = None
    finetune: FinetuneConfig | None = None
