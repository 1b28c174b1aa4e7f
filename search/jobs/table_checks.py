"""What additive tables cannot be made of."""

from __future__ import annotations

from collections.abc import Iterable

from apportion.compressors.errors import ConfigurationError
from apportion.compressors.levels import Level


def check_fisher(levels: Iterable[Level]) -> None:
    """Raises ConfigurationError for levels that do more than move weights."""
    for level in levels:
        if level.channels:
            raise ConfigurationError(
                f"errors: fisher: level {level} changes shapes, not weights; for channel levels "
                "there are layer, probe, loss and kl"
            )
        if level.activation_bits is not None:
            raise ConfigurationError(
                f"errors: fisher: level {level} quantizes inputs, which moves no weight; for such "
                "levels there are layer, probe, loss and kl"
            )
