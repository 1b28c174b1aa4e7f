"""Models by name: the project's own networks, and those that a user registers."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

MODELS: dict[str, Callable[[], nn.Module]] = {}


def register_model(name: str) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Register a function without arguments that builds an nn.Module under `name`."""

    def keep(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        MODELS[name] = build
        return build

    return keep
