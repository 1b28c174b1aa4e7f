"""The job file's `workload`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from apportion.compressors.errors import ApportionError
from apportion.db.documents.section import SEEDS, Section
from apportion.evaluators.data.config import DataConfig, DigitsData
from apportion.evaluators.tasks.image_classification import ImageClassification
from apportion.evaluators.tasks.registry import check_task


class TaskConfig(Section):
    """What the model is for."""

    kind: str = Field(
        ImageClassification.kind,
        description="A registered name, or package.module:Class of your own.",
    )
    pooling: Literal["mean", "cls"] | None = Field(
        None,
        description="sentence-similarity: how tokens become an embedding, as the mean of all that "
        "are no padding (the default), or the first one's.",
    )

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        try:
            check_task(kind)
        except ApportionError as error:
            raise ValueError(str(error)) from error
        return kind

    @property
    def options(self) -> dict[str, Any]:
        """What the task is made with."""
        return {} if self.pooling is None else {"pooling": self.pooling}


class WorkloadConfig(Section):
    """The job file's `workload`."""

    model: str | None = Field(
        None,
        min_length=1,
        description="A registered name, torchvision:NAME, timm:NAME, huggingface:NAME, an .onnx "
        "file (also onnx:PATH), or package.module:function.",
    )
    weights: str | None = Field(
        None,
        description="A .safetensors or .pt file, its URL, or one of torchvision's weight enums.",
    )
    shapes: str | None = Field(
        None,
        description="The shapes.json of a smaller model that was exported: `weights` are its.",
    )
    fold: bool = Field(
        False,
        description="Fold batch-norm into the layers before it, as integer hardware runs them.",
    )
    task: TaskConfig = Field(default_factory=lambda: TaskConfig.model_validate({}))
    data: DataConfig
    calibration_samples: int | None = Field(
        None,
        ge=1,
        description="Random calibration samples; default: 1,024, or all where there are fewer.",
    )
    seed: int = Field(0, ge=0, lt=SEEDS, description="Of the choice of calibration samples.")
    batch_size: int = Field(128, ge=1)

    @property
    def name(self) -> str:
        """Of the model."""
        return self.model or "digits_resnet"

    @model_validator(mode="after")
    def _needs_a_model(self) -> WorkloadConfig:
        if self.model is None and not isinstance(self.data, DigitsData):
            raise ValueError(
                "workload.model is missing (only `data: {kind: digits}` brings a model of its own)"
            )
        return self

    @model_validator(mode="after")
    def _shapes_of_weights(self) -> WorkloadConfig:
        if self.shapes is not None and self.weights is None:
            raise ValueError("shapes: they are those of the file that weights names; name it too")
        return self
