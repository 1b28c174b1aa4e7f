"""What every batch has reached between two blocks: in memory, and on disk beyond a limit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from apportion.compressors.chains import NotAChainError
from apportion.compressors.errors import OutputError

_PLAIN = (type(None), bool, int, float, str)
_Held = list[Any] | Path
"""Leaves of a tree, or the file that holds them."""


class Kept:
    """A tree of tensors for each batch, by its number. What does not fit `limit` bytes of memory
    lies in `folder`, which is made when it is needed and removed by `close`."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._trees: dict[int, tuple[TreeSpec, list[torch.device | None], _Held]] = {}
        self._sizes: dict[int, int] = {}

    @property
    def in_memory(self) -> int:
        """Bytes."""
        return sum(self._sizes.values())

    def put(self, batch: int, tree: Any) -> None:
        """Keep a copy in place of what was kept for the batch. Raises NotAChainError where the tree
        holds anything but tensors, numbers and texts; OutputError where it cannot be written."""
        leaves, structure = tree_flatten(tree)
        for leaf in leaves:
            if not isinstance(leaf, (Tensor, *_PLAIN)):
                raise NotAChainError(f"a block gives a {type(leaf).__name__}")
        devices = [leaf.device if isinstance(leaf, Tensor) else None for leaf in leaves]
        # A copy: what comes next may write into it. Strides stay, on which rounding may depend.
        own = [
            leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        ]
        size = sum(leaf.untyped_storage().nbytes() for leaf in own if isinstance(leaf, Tensor))
        self._sizes[batch] = 0
        held: _Held = own
        if self.in_memory + size <= self._limit:
            self._sizes[batch] = size
        else:
            held = self._written(batch, own)
        self._trees[batch] = (structure, devices, held)

    def get(self, batch: int) -> Any:
        """A copy of what was kept, on the devices where it was."""
        structure, devices, held = self._trees[batch]
        leaves = torch.load(held) if isinstance(held, Path) else held
        placed = [
            leaf if device is None else leaf.to(device, copy=not isinstance(held, Path))
            for leaf, device in zip(leaves, devices, strict=True)
        ]
        return tree_unflatten(placed, structure)

    def close(self) -> None:
        """Forget all, and remove the folder."""
        self._trees.clear()
        self._sizes.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _written(self, batch: int, leaves: list[Any]) -> Path:
        file = self._folder / f"{batch}.pt"
        try:
            self._folder.mkdir(exist_ok=True)
            torch.save(leaves, file)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            raise OutputError(file, getattr(error, "strerror", None) or str(error)) from error
        return file
