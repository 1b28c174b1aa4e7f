"""The sections of `workload.data` that name images with more than a class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from apportion.db.documents.section import Section

Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BoxesData(Section):
    """Images with boxes: YOLO's text labels, or COCO's JSON. Images keep their shape: they are
    resized to fit a square and stand in its upper left corner."""

    kind: Literal["boxes"]
    calibration: Path = Field(
        description="A folder with `images` and `labels` (a text file of the same stem each), or a "
        "JSON file of COCO's annotations."
    )
    test: Path = Field(description="Images that only reports look at.")
    train: Path | None = Field(None, description="Default: the calibration images.")
    images: Path | None = Field(
        None, description="The folder of the images that COCO's annotations name."
    )
    size: int = Field(640, ge=1, description="Side of the square.")
    pad: int = Field(114, ge=0, le=255, description="Value beside the image, before scaling.")
    order: Literal["rgb", "bgr"] = Field("rgb", description="Of the channels.")
    scale: Positive = Field(255.0, description="Values 0 to 255 are divided by it; 1 leaves them.")
    mean: tuple[Number, Number, Number] = Field(
        (0.0, 0.0, 0.0), description="Per channel in `order`, of scaled values."
    )
    std: tuple[Positive, Positive, Positive] = Field(
        (1.0, 1.0, 1.0), description="Per channel in `order`, of scaled values."
    )
