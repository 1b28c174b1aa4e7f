"""States of trainings, one for each by its name, from which an interrupted one goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from compressors.errors import ModelError
from db.files import write_atomically


class Checkpoints(Protocol):
    def write(self, name: str, content: dict[str, Any]) -> None:
        """Keep the state of the training `name`, in place of the one before."""

    def read(self, name: str) -> dict[str, Any] | None:
        """The state that was kept last. Raises ModelError for one that is damaged."""


@dataclass(frozen=True, slots=True)
class FolderCheckpoints:
    """A file for each training in `folder`."""

    folder: Path

    def write(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.folder / f"{name}.pt", lambda temporary: torch.save(content, temporary))

    def read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / f"{name}.pt"
        return read_state(path) if path.is_file() else None


def read_state(path: Path) -> dict[str, Any]:
    """Raises ModelError for a file that holds none."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly anything for a damaged file
        raise _damaged(path) from error
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> ModelError:
    return ModelError(f"{path}: no training's state, or damaged; remove it to begin again")
