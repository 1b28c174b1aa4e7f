"""States of trainings, one for each by its name, from which an interrupted one goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from apportion.compressors.errors import ModelError
from apportion.db.files import write_atomically


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
        write_atomically(
            self.folder / f"{name}.pt", lambda temporary: torch.save(content, temporary)
        )

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


@dataclass(frozen=True)
class TrainingState:
    """All that the training of `key` changes as it goes on; `average`: of its parameters, where it
    keeps one."""

    key: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    average: list[Tensor]

    def content(self, epoch: int) -> dict[str, Any]:
        return {
            "key": self.key,
            "epoch": epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average,
        }

    def restore(self, content: dict[str, Any] | None, name: str) -> int:
        """Epochs that are done. Raises ModelError for what is no training's state."""
        if content is None or content.get("key", self.key) != self.key:
            return 0  # another training's
        try:
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.schedule.load_state_dict(content["schedule"])
            with torch.no_grad():
                for mine, theirs in zip(self.average, content["average"], strict=True):
                    mine.copy_(theirs)
            return int(content["epoch"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"the kept state of the training {name!r} is not this training's ({error})"
            ) from error
