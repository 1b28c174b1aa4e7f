"""torchvision's models: classification, segmentation, detection and video."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from apportion.compressors.errors import ModelError, UnknownNameError

PREFIX = "torchvision:"
_BACKBONE = "weights_backbone"


def build(name: str, enum: str | None) -> nn.Module:
    """The model `name`, with the weights that torchvision calls `enum`, or random ones: nothing is
    fetched then. Raises UnknownNameError, ModelError."""
    import torchvision

    if name not in torchvision.models.list_models():
        raise UnknownNameError("torchvision model", name, torchvision.models.list_models())
    if enum is not None:
        choices = torchvision.models.get_model_weights(name)
        if enum != "DEFAULT" and enum not in choices.__members__:
            raise UnknownNameError(
                "weights", enum, ["DEFAULT", *choices.__members__], f"{PREFIX}{name}"
            )
    told: dict[str, Any] = {"weights": enum}
    parameters = inspect.signature(torchvision.models.get_model_builder(name)).parameters
    if _BACKBONE in parameters:  # which would be fetched, and then overwritten
        told[_BACKBONE] = None
    try:
        model: nn.Module = torchvision.models.get_model(name, **told)
    except (OSError, RuntimeError) as error:  # no network; a download cut short (its hash is wrong)
        raise ModelError(
            f"model '{PREFIX}{name}': cannot be built with weights {enum} ({error})"
        ) from error
    return model


def class_names(name: str) -> list[str] | None:
    """The names of a classifier's classes."""
    import torchvision

    weights = torchvision.models.get_model_weights(name)
    return next((list(w.meta["categories"]) for w in weights if "categories" in w.meta), None)
