"""timm's models (the extra `timm`), with random weights or those of a file: nothing is fetched."""

from __future__ import annotations

from torch import nn

from apportion.compressors.errors import ConfigurationError, UnknownNameError

PREFIX = "timm:"


def build(name: str) -> nn.Module:
    """The model `name`, as timm makes it by default. Raises UnknownNameError,
    ConfigurationError."""
    try:
        import timm
    except ImportError as error:
        raise ConfigurationError(
            f"model '{PREFIX}{name}' needs the package timm: install apportion[timm]"
        ) from error
    if not timm.is_model(name):
        raise UnknownNameError("timm model", name, timm.list_models())
    model: nn.Module = timm.create_model(name, pretrained=False)
    return model
